#include "gsa/ops/indexer/index_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "gsa/base/check.h"

namespace gsa {
namespace {

constexpr const char* kOp = "index_scores";

at::ScalarType score_dtype(const at::Tensor& index_query) {
  return index_query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Composite: made of differentiable ATen ops, so autograd and Meta come with it.
at::Tensor index_scores_composite(const at::Tensor& index_query, const at::Tensor& index_key,
                                  const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                                  c10::string_view activation) {
  check_index_inputs(kOp, index_query, index_key, head_weight, head_bias, /*takes_float8_key=*/true);
  // Its gradient would come in the key's own dtype, which is no dtype for gradients.
  TORCH_CHECK_VALUE(index_key.scalar_type() != at::kFloat8_e4m3fn || !index_key.requires_grad() ||
                        !at::GradMode::is_enabled(),
                    kOp, ": index_key expected to need no gradient in Float8_e4m3fn");
  const int64_t queries = index_query.size(1), keys = index_key.size(1);
  const at::Tensor scores =
      score_block(index_query, index_key, head_weight, head_bias, parse_activation(kOp, activation), 0,
                  queries, score_dtype(index_query));
  return scores.masked_fill(future_mask(0, queries, queries, keys, scores.device()),
                            -std::numeric_limits<double>::infinity());
}

void check_key_kind(std::string_view op, const at::Tensor& index_query, const at::Tensor& index_key,
                    bool takes_float8_key) {
  if (!takes_float8_key) return check_same_kind(op, "index_key", index_key, "index_query", index_query);
  TORCH_CHECK_TYPE(
      index_key.scalar_type() == index_query.scalar_type() || index_key.scalar_type() == at::kFloat8_e4m3fn,
      op, ": index_key expected the dtype of index_query (", index_query.scalar_type(),
      ") or Float8_e4m3fn, got ", index_key.scalar_type());
  check_same_device(op, "index_key", index_key, "index_query", index_query);
}

}  // namespace

void check_index_inputs(std::string_view op, const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        bool takes_float8_key) {
  check_shape(op, "index_query", index_query, {kAny, kAny, kAny, kAny}, "[B,T,J,I]");
  check_floating(op, "index_query", index_query);
  const int64_t batch = index_query.size(0), queries = index_query.size(1), heads = index_query.size(2),
                dim = index_query.size(3);
  TORCH_CHECK_VALUE(heads > 0 && dim > 0, op,
                    ": index_query expected at least one index head and dimension, got ",
                    index_query.sizes());
  check_shape(op, "index_key", index_key, {batch, kAny, dim}, "[B,S,I]");
  check_key_kind(op, index_query, index_key, takes_float8_key);
  TORCH_CHECK_VALUE(index_key.size(1) >= queries, op,
                    ": index_key expected at least as many keys S as there are queries T = ", queries,
                    ", got S = ", index_key.size(1));
  check_shape(op, "head_weight", head_weight, {batch, queries, heads}, "[B,T,J]");
  check_floating(op, "head_weight", head_weight);
  check_same_device(op, "head_weight", head_weight, "index_query", index_query);
  if (head_bias) {
    check_shape(op, "head_bias", *head_bias, {heads}, "[J]");
    check_floating(op, "head_bias", *head_bias);
    check_same_device(op, "head_bias", *head_bias, "index_query", index_query);
  }
}

at::Tensor score_block(const at::Tensor& index_query, const at::Tensor& index_key,
                       const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                       Activation activation, int64_t begin, int64_t end, at::ScalarType dtype) {
  const double inverse_root = 1.0 / std::sqrt(static_cast<double>(index_query.size(3)));
  const at::Tensor key = index_key.to(dtype).transpose(1, 2);  // [B,I,S]
  at::Tensor scores;
  for (int64_t head = 0; head < index_query.size(2); ++head) {
    const at::Tensor query = index_query.select(2, head).slice(1, begin, end).to(dtype) * inverse_root;
    at::Tensor logits = at::matmul(query, key);
    if (head_bias) logits = logits + (*head_bias)[head].to(dtype);
    const at::Tensor weight = head_weight.select(2, head).slice(1, begin, end).unsqueeze(-1).to(dtype);
    const at::Tensor term = weight * activate(logits, activation);
    scores = head == 0 ? term : scores + term;
  }
  return scores;
}

at::Tensor future_mask(int64_t begin, int64_t end, int64_t queries, int64_t keys, const at::Device& device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor position = at::arange(begin + keys - queries, end + keys - queries, options).unsqueeze(1);
  return at::arange(keys, options).unsqueeze(0).gt(position);
}

at::Tensor index_scores(const at::Tensor& index_query, const at::Tensor& index_key,
                        const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                        std::string_view activation) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gsa::index_scores", "")
                             .typed<decltype(index_scores_composite)>();
  return op.call(index_query, index_key, head_weight, head_bias, activation);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def(
      "index_scores(Tensor index_query, Tensor index_key, Tensor head_weight, Tensor? head_bias, str "
      "activation=\"sigmoid\") -> Tensor");
}

TORCH_LIBRARY_IMPL(gsa, CompositeImplicitAutograd, library) {
  library.impl("index_scores", index_scores_composite);
}

}  // namespace gsa
