#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gsa/ops/sparse_attention/sparse_attention.h"

namespace gsa {
namespace {

struct SparseAttention : torch::autograd::Function<SparseAttention> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context,
                                                const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const at::Tensor& indices,
                                                const at::Tensor& counts, int64_t query_tile,
                                                std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto [out, lse] = sparse_attention(query, key, value, indices, counts, query_tile, scale);
    context->save_for_backward({query, key, value, out, lse, indices, counts});
    context->saved_data["query_tile"] = query_tile;
    context->saved_data["scale"] = scale;
    return {out, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor& out = saved[3];
    const at::Tensor grad_out = grads[0].defined() ? grads[0] : at::zeros_like(out);
    const std::optional<at::Tensor> grad_lse = grads[1].defined() ? std::optional(grads[1]) : std::nullopt;
    const auto [query, key, value] = sparse_attention_backward(
        grad_out, grad_lse, saved[0], saved[1], saved[2], out, saved[4], saved[5], saved[6],
        context->saved_data["query_tile"].toInt(), context->saved_data["scale"].toOptional<double>());
    return {query, key, value, {}, {}, {}, {}};
  }
};

std::tuple<at::Tensor, at::Tensor> sparse_attention_autograd(const at::Tensor& query, const at::Tensor& key,
                                                             const at::Tensor& value,
                                                             const at::Tensor& indices,
                                                             const at::Tensor& counts, int64_t query_tile,
                                                             std::optional<double> scale) {
  const auto results = SparseAttention::apply(query, key, value, indices, counts, query_tile, scale);
  return {results[0], results[1]};
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, Autograd, library) {
  library.impl("sparse_attention", sparse_attention_autograd);
}

}  // namespace gsa
