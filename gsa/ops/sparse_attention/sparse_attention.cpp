#include "gsa/ops/sparse_attention/sparse_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "gsa/base/check.h"

namespace gsa {
namespace {

constexpr const char* kOp = "sparse_attention";

std::tuple<at::Tensor, at::Tensor> meta(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, const at::Tensor& indices,
                                        const at::Tensor& counts, int64_t query_tile,
                                        std::optional<double> scale) {
  check_sparse_attention(query, key, value, indices, counts, query_tile);
  const auto lse_dtype = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return {at::empty(query.sizes(), query.options()),
          at::empty(query.sizes().slice(0, 3), query.options().dtype(lse_dtype))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile, std::optional<double> scale) {
  return {at::empty_like(query), at::empty_like(key), at::empty_like(value)};
}

}  // namespace

void check_attention_inputs(const char* op, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value) {
  check_shape(op, "query", query, {kAny, kAny, kAny, kAny}, "[B,T,H,E]");
  check_floating(op, "query", query);
  const int64_t batch = query.size(0), queries = query.size(1), heads = query.size(2), dim = query.size(3);
  TORCH_CHECK_VALUE(heads > 0 && dim > 0, op, ": query expected at least one head and dimension, got ",
                    query.sizes());
  check_shape(op, "key", key, {batch, kAny, kAny, dim}, "[B,S,G,E]");
  check_same_kind(op, "key", key, "query", query);
  const int64_t keys = key.size(1), groups = key.size(2);
  TORCH_CHECK_VALUE(groups > 0 && heads % groups == 0, op,
                    ": key expected a number of heads G that divides the query heads H = ", heads, ", got ",
                    groups);
  TORCH_CHECK_VALUE(keys >= queries, op,
                    ": key expected at least as many keys S as there are queries T = ", queries,
                    ", got S = ", keys);
  check_shape(op, "value", value, {batch, keys, groups, dim}, "[B,S,G,E]");
  check_same_kind(op, "value", value, "query", query);
}

void check_sparse_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile) {
  check_attention_inputs(kOp, query, key, value);
  TORCH_CHECK_VALUE(query_tile >= 1, kOp, ": query_tile expected a positive number, got ", query_tile);
  const int64_t batch = query.size(0), rows = (query.size(1) + query_tile - 1) / query_tile;
  check_shape(kOp, "indices", indices, {batch, rows, kAny}, "[B,R,K] with R = ceil(T / query_tile)");
  check_dtype(kOp, "indices", indices, at::kInt);
  check_same_device(kOp, "indices", indices, "query", query);
  check_shape(kOp, "counts", counts, {batch, rows}, "[B,R]");
  check_dtype(kOp, "counts", counts, at::kInt);
  check_same_device(kOp, "counts", counts, "query", query);
}

std::tuple<at::Tensor, at::Tensor> sparse_attention(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value, const at::Tensor& indices,
                                                    const at::Tensor& counts, int64_t query_tile,
                                                    std::optional<double> scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gsa::sparse_attention", "")
                             .typed<decltype(sparse_attention)>();
  return op.call(query, key, value, indices, counts, query_tile, scale);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_attention_backward(
    const at::Tensor& grad_out, const std::optional<at::Tensor>& grad_lse, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const at::Tensor& out, const at::Tensor& lse,
    const at::Tensor& indices, const at::Tensor& counts, int64_t query_tile, std::optional<double> scale) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gsa::sparse_attention_backward", "")
                             .typed<decltype(sparse_attention_backward)>();
  return op.call(grad_out, grad_lse, query, key, value, out, lse, indices, counts, query_tile, scale);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def(
      "sparse_attention(Tensor query, Tensor key, Tensor value, Tensor indices, Tensor counts, int "
      "query_tile=1, float? scale=None) "
      "-> (Tensor out, Tensor lse)");
  library.def(
      "sparse_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, "
      "Tensor out, Tensor lse, "
      "Tensor indices, Tensor counts, int query_tile, float? scale) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("sparse_attention", meta);
  library.impl("sparse_attention_backward", backward_meta);
}

}  // namespace gsa
