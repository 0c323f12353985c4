#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gsa/ops/index_loss/index_loss.h"

namespace gsa {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void save_options(AutogradContext* context, const IndexLossOptions& options) {
  context->saved_data["activation"] = options.activation;
  context->saved_data["scale"] = options.scale;
  context->saved_data["keep_first"] = options.keep_first;
  context->saved_data["keep_recent"] = options.keep_recent;
  context->saved_data["head_reduction"] = options.head_reduction;
}

IndexLossOptions saved_options(AutogradContext* context) {
  IndexLossOptions options;
  options.activation = context->saved_data["activation"].toStringRef();
  options.scale = context->saved_data["scale"].toOptional<double>();
  options.keep_first = context->saved_data["keep_first"].toInt();
  options.keep_recent = context->saved_data["keep_recent"].toInt();
  options.head_reduction = context->saved_data["head_reduction"].toStringRef();
  return options;
}

OptionalTensor optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

/// The variable list of a backward: nothing for the `before` model-side tensors and for the options.
variable_list gradients(size_t before, const IndexLossGradients& grads, bool has_bias) {
  variable_list list(before);
  list.insert(list.end(), {std::get<0>(grads), std::get<1>(grads), std::get<2>(grads),
                           has_bias ? std::get<3>(grads) : at::Tensor(), std::get<4>(grads), at::Tensor()});
  return list;
}

struct IndexLossDense : torch::autograd::Function<IndexLossDense> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& lse, const at::Tensor& index_query, const at::Tensor& index_key,
                            const at::Tensor& head_weight, const OptionalTensor& head_bias,
                            const at::Tensor& log_scale, const IndexLossOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward(
        {query, key, lse, index_query, index_key, head_weight, head_bias.value_or(at::Tensor()), log_scale});
    save_options(context, options);
    return index_loss_dense(query, key, lse, index_query, index_key, head_weight, head_bias, log_scale,
                            options);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return gradients(
        3,
        index_loss_dense_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
                                  optional(saved[6]), saved[7], saved_options(context)),
        saved[6].defined());
  }
};

struct IndexLossSelected : torch::autograd::Function<IndexLossSelected> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& indices, const at::Tensor& counts,
                            const at::Tensor& index_query, const at::Tensor& index_key,
                            const at::Tensor& head_weight, const OptionalTensor& head_bias,
                            const at::Tensor& log_scale, const IndexLossOptions& options) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({query, key, indices, counts, index_query, index_key, head_weight,
                                head_bias.value_or(at::Tensor()), log_scale});
    save_options(context, options);
    return index_loss_selected(query, key, indices, counts, index_query, index_key, head_weight, head_bias,
                               log_scale, options);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return gradients(
        4,
        index_loss_selected_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
                                     saved[6], optional(saved[7]), saved[8], saved_options(context)),
        saved[7].defined());
  }
};

IndexLossOptions options_of(c10::string_view activation, std::optional<double> scale, int64_t keep_first,
                            int64_t keep_recent, c10::string_view head_reduction) {
  return {std::string(activation), scale, keep_first, keep_recent, std::string(head_reduction)};
}

at::Tensor dense_autograd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                          const at::Tensor& index_query, const at::Tensor& index_key,
                          const at::Tensor& head_weight, const OptionalTensor& head_bias,
                          const at::Tensor& log_scale, c10::string_view activation,
                          std::optional<double> scale, int64_t keep_first, int64_t keep_recent,
                          c10::string_view head_reduction) {
  return IndexLossDense::apply(query.detach(), key.detach(), lse.detach(), index_query, index_key,
                               head_weight, head_bias, log_scale,
                               options_of(activation, scale, keep_first, keep_recent, head_reduction));
}

at::Tensor selected_autograd(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices,
                             const at::Tensor& counts, const at::Tensor& index_query,
                             const at::Tensor& index_key, const at::Tensor& head_weight,
                             const OptionalTensor& head_bias, const at::Tensor& log_scale,
                             c10::string_view activation, std::optional<double> scale, int64_t keep_first,
                             int64_t keep_recent, c10::string_view head_reduction) {
  return IndexLossSelected::apply(query.detach(), key.detach(), indices, counts, index_query, index_key,
                                  head_weight, head_bias, log_scale,
                                  options_of(activation, scale, keep_first, keep_recent, head_reduction));
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, Autograd, library) {
  library.impl("index_loss_dense", dense_autograd);
  library.impl("index_loss_selected", selected_autograd);
}

}  // namespace gsa
