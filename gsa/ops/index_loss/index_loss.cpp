#include "gsa/ops/index_loss/index_loss.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <cmath>

#include "gsa/base/check.h"
#include "gsa/ops/index_loss/index_loss_problem.h"
#include "gsa/ops/indexer/index_scores.h"

namespace gsa {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
constexpr const char* kDense = "index_loss_dense";
constexpr const char* kSelected = "index_loss_selected";

/// The signature of an op: `Before` tensors, then the indexer's tensors and the options.
template <class Result, class... Before>
using Signature = Result(const Before&..., const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const OptionalTensor&, const at::Tensor&, c10::string_view, std::optional<double>,
                         int64_t, int64_t, c10::string_view);

template <class Typed, class... Tensors>
auto call(const char* name, const IndexLossOptions& options, const Tensors&... tensors) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Typed>();
  return op.call(tensors..., options.activation, options.scale, options.keep_first, options.keep_recent,
                 options.head_reduction);
}

void check_attention(std::string_view op, const at::Tensor& query, const at::Tensor& key) {
  check_shape(op, "query", query, {kAny, kAny, kAny, kAny}, "[B,T,H,E]");
  check_floating(op, "query", query);
  const int64_t queries = query.size(1), heads = query.size(2), dim = query.size(3);
  TORCH_CHECK_VALUE(heads > 0 && dim > 0, op, ": query expected at least one head and dimension, got ",
                    query.sizes());
  check_shape(op, "key", key, {query.size(0), kAny, kAny, dim}, "[B,S,G,E]");
  check_same_kind(op, "key", key, "query", query);
  TORCH_CHECK_VALUE(key.size(1) >= queries, op,
                    ": key expected at least as many keys S as there are queries T = ", queries,
                    ", got S = ", key.size(1));
  TORCH_CHECK_VALUE(key.size(2) > 0 && heads % key.size(2) == 0, op,
                    ": key expected a number of heads G that divides H = ", heads, ", got G = ", key.size(2));
}

IndexLossProblem common_problem(std::string_view op, const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& index_query, const at::Tensor& index_key,
                                const at::Tensor& head_weight, const OptionalTensor& head_bias,
                                const at::Tensor& log_scale, std::string_view activation,
                                std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                                std::string_view head_reduction) {
  check_attention(op, query, key);
  check_index_inputs(op, index_query, index_key, head_weight, head_bias);
  check_shape(op, "index_query", index_query, {query.size(0), query.size(1), kAny, kAny}, "[B,T,J,I]");
  check_shape(op, "index_key", index_key, {query.size(0), key.size(1), kAny}, "[B,S,I]");
  check_same_device(op, "index_query", index_query, "query", query);
  check_floating(op, "log_scale", log_scale);
  TORCH_CHECK_VALUE(log_scale.numel() == 1, op, ": log_scale expected one number, got a tensor of shape ",
                    log_scale.sizes());
  check_same_device(op, "log_scale", log_scale, "query", query);
  TORCH_CHECK_VALUE(keep_first >= 0, op, ": keep_first expected at least 0, got ", keep_first);
  TORCH_CHECK_VALUE(keep_recent >= 0, op, ": keep_recent expected at least 0, got ", keep_recent);
  TORCH_CHECK_VALUE(head_reduction == "mean" || head_reduction == "max", op,
                    ": head_reduction expected 'mean' or 'max', got '", head_reduction, "'");
  IndexLossProblem problem;
  problem.query = query;
  problem.key = key;
  problem.index_query = index_query;
  problem.index_key = index_key;
  problem.head_weight = head_weight;
  problem.head_bias = head_bias;
  problem.log_scale = log_scale;
  problem.activation = parse_activation(op, activation);
  problem.scale = scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(3))));
  problem.keep_first = keep_first;
  problem.keep_recent = keep_recent;
  problem.maximum = head_reduction == "max";
  problem.dtype = index_query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return problem;
}

}  // namespace

IndexLossProblem dense_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                               const at::Tensor& index_query, const at::Tensor& index_key,
                               const at::Tensor& head_weight, const OptionalTensor& head_bias,
                               const at::Tensor& log_scale, std::string_view activation,
                               std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                               std::string_view head_reduction) {
  IndexLossProblem problem =
      common_problem(kDense, query, key, index_query, index_key, head_weight, head_bias, log_scale,
                     activation, scale, keep_first, keep_recent, head_reduction);
  check_shape(kDense, "lse", lse, {query.size(0), query.size(1), query.size(2)}, "[B,T,H]");
  check_floating(kDense, "lse", lse);
  check_same_device(kDense, "lse", lse, "query", query);
  problem.lse = lse;
  return problem;
}

IndexLossProblem selected_problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                                  const at::Tensor& counts, const at::Tensor& index_query,
                                  const at::Tensor& index_key, const at::Tensor& head_weight,
                                  const OptionalTensor& head_bias, const at::Tensor& log_scale,
                                  std::string_view activation, std::optional<double> scale,
                                  int64_t keep_first, int64_t keep_recent, std::string_view head_reduction) {
  IndexLossProblem problem =
      common_problem(kSelected, query, key, index_query, index_key, head_weight, head_bias, log_scale,
                     activation, scale, keep_first, keep_recent, head_reduction);
  check_shape(kSelected, "indices", indices, {query.size(0), query.size(1), kAny},
              "[B,T,K] (one row a query)");
  check_dtype(kSelected, "indices", indices, at::kInt);
  check_same_device(kSelected, "indices", indices, "query", query);
  check_shape(kSelected, "counts", counts, {query.size(0), query.size(1)}, "[B,T]");
  check_dtype(kSelected, "counts", counts, at::kInt);
  check_same_device(kSelected, "counts", counts, "query", query);
  problem.indices = indices;
  return problem;
}

at::Tensor index_loss_dense(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                            const at::Tensor& index_query, const at::Tensor& index_key,
                            const at::Tensor& head_weight, const OptionalTensor& head_bias,
                            const at::Tensor& log_scale, const IndexLossOptions& options) {
  using Typed = Signature<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  return call<Typed>("gsa::index_loss_dense", options, query, key, lse, index_query, index_key, head_weight,
                     head_bias, log_scale);
}

at::Tensor index_loss_selected(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                               const at::Tensor& counts, const at::Tensor& index_query,
                               const at::Tensor& index_key, const at::Tensor& head_weight,
                               const OptionalTensor& head_bias, const at::Tensor& log_scale,
                               const IndexLossOptions& options) {
  using Typed = Signature<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  return call<Typed>("gsa::index_loss_selected", options, query, key, indices, counts, index_query, index_key,
                     head_weight, head_bias, log_scale);
}

IndexLossGradients index_loss_dense_backward(const at::Tensor& grad, const at::Tensor& query,
                                             const at::Tensor& key, const at::Tensor& lse,
                                             const at::Tensor& index_query, const at::Tensor& index_key,
                                             const at::Tensor& head_weight, const OptionalTensor& head_bias,
                                             const at::Tensor& log_scale, const IndexLossOptions& options) {
  using Typed = Signature<IndexLossGradients, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  return call<Typed>("gsa::index_loss_dense_backward", options, grad, query, key, lse, index_query, index_key,
                     head_weight, head_bias, log_scale);
}

IndexLossGradients index_loss_selected_backward(const at::Tensor& grad, const at::Tensor& query,
                                                const at::Tensor& key, const at::Tensor& indices,
                                                const at::Tensor& counts, const at::Tensor& index_query,
                                                const at::Tensor& index_key, const at::Tensor& head_weight,
                                                const OptionalTensor& head_bias, const at::Tensor& log_scale,
                                                const IndexLossOptions& options) {
  using Typed = Signature<IndexLossGradients, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  return call<Typed>("gsa::index_loss_selected_backward", options, grad, query, key, indices, counts,
                     index_query, index_key, head_weight, head_bias, log_scale);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  const std::string indexer =
      "Tensor index_query, Tensor index_key, Tensor head_weight, Tensor? head_bias, Tensor log_scale, str "
      "activation=\"sigmoid\", "
      "float? scale=None, int keep_first=0, int keep_recent=0, str head_reduction=\"mean\")";
  const std::string dense = "Tensor query, Tensor key, Tensor lse, " + indexer;
  const std::string selected = "Tensor query, Tensor key, Tensor indices, Tensor counts, " + indexer;
  const std::string gradients = " -> (Tensor, Tensor, Tensor, Tensor, Tensor)";
  library.def(("index_loss_dense(" + dense + " -> Tensor").c_str());
  library.def(("index_loss_selected(" + selected + " -> Tensor").c_str());
  library.def(("index_loss_dense_backward(Tensor grad, " + dense + gradients).c_str());
  library.def(("index_loss_selected_backward(Tensor grad, " + selected + gradients).c_str());
}

}  // namespace gsa
