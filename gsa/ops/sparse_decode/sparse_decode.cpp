#include "gsa/ops/sparse_decode/sparse_decode.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <cmath>
#include <string>

#include "gsa/base/check.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"

#ifdef GSA_CUDA
#include "gsa/ops/indexer/index_select_decode_cuda.h"
#include "gsa/ops/sparse_decode/sparse_decode_cuda.h"
#endif

namespace gsa {
namespace {

constexpr const char* kOp = "sparse_decode";

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> decode(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& index_query,
    const at::Tensor& index_key, const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
    const std::optional<at::Tensor>& running_mean, int64_t k_base, int64_t k_min, int64_t k_max,
    c10::string_view budget, c10::string_view activation, int64_t keep_first, int64_t keep_recent,
    const std::optional<at::Tensor>& log_scale, std::optional<double> scale) {
  const IndexSelectOptions options{
      k_base, k_min, k_max, std::string(budget), std::string(activation), 1, keep_first, keep_recent};
  check_attention_inputs(kOp, query, key, value);
  check_index_select(index_query, index_key, head_weight, head_bias, running_mean, options, log_scale);
  check_shape(kOp, "index_query", index_query, {query.size(0), query.size(1), kAny, kAny}, "[B,T,J,I]");
  check_shape(kOp, "index_key", index_key, {key.size(0), key.size(1), kAny}, "[B,S,I]");
  check_same_device(kOp, "index_query", index_query, "query", query);
#ifdef GSA_CUDA
  const bool differentiable =
      at::GradMode::is_enabled() && (query.requires_grad() || key.requires_grad() || value.requires_grad());
  if (query.is_cuda() && !differentiable) {
    const double factor = scale.value_or(1 / std::sqrt(static_cast<double>(query.size(3))));
    if (const auto done = sparse_decode_fused(query, key, value, index_query, index_key, head_weight,
                                              head_bias, options, factor))
      return {done->out, done->lse, done->counts, done->statistic};
    // One sequence's selection is told what attention reads next.
    if (query.size(0) == 1) {
      if (const auto selected =
              index_select_decode(index_query, index_key, head_weight, head_bias, running_mean, options,
                                  log_scale, std::nullopt, {key, value})) {
        const auto& [indices, counts, statistic] = *selected;
        const auto [out, lse] = sparse_attention(query, key, value, indices, counts, 1, scale);
        return {out, lse, counts, statistic};
      }
    }
  }
#endif
  const auto [indices, counts, statistic] =
      index_select(index_query, index_key, head_weight, head_bias, running_mean, options, log_scale);
  const auto [out, lse] = sparse_attention(query, key, value, indices, counts, 1, scale);
  return {out, lse, counts, statistic};
}

}  // namespace

SparseDecodeResult sparse_decode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& index_query, const at::Tensor& index_key,
                                 const at::Tensor& head_weight, const std::optional<at::Tensor>& head_bias,
                                 const std::optional<at::Tensor>& running_mean,
                                 const IndexSelectOptions& options,
                                 const std::optional<at::Tensor>& log_scale, std::optional<double> scale) {
  TORCH_CHECK_VALUE(options.query_tile == 1, kOp, ": query_tile expected 1, got ", options.query_tile);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::sparse_decode", "").typed<decltype(decode)>();
  const auto [out, lse, counts, statistic] =
      op.call(query, key, value, index_query, index_key, head_weight, head_bias, running_mean, options.k_base,
              options.k_min, options.k_max, options.budget, options.activation, options.keep_first,
              options.keep_recent, log_scale, scale);
  return {out, lse, counts, statistic};
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def(
      "sparse_decode(Tensor query, Tensor key, Tensor value, Tensor index_query, Tensor index_key, "
      "Tensor head_weight, Tensor? head_bias, Tensor? running_mean, int k_base, int k_min, int k_max, "
      "str budget=\"inverse\", str activation=\"sigmoid\", int keep_first=0, int keep_recent=0, "
      "Tensor? log_scale=None, float? scale=None) "
      "-> (Tensor out, Tensor lse, Tensor counts, Tensor statistic)");
}

TORCH_LIBRARY_IMPL(gsa, CompositeImplicitAutograd, library) {
  library.impl("sparse_decode", decode);
}

}  // namespace gsa
