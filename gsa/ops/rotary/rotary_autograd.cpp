#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gsa/ops/rotary/rotary.h"

namespace gsa {
namespace {

/// A rotation's transpose is the rotation back.
struct Rotary : torch::autograd::Function<Rotary> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& cos, const at::Tensor& sin) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({cos, sin});
    return rotary(x, cos, sin);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {rotary(grads[0], saved[0], -saved[1]), at::Tensor(), at::Tensor()};
  }
};

at::Tensor rotary_autograd(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return Rotary::apply(x, cos, sin);
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, Autograd, library) {
  library.impl("rotary", rotary_autograd);
}

}  // namespace gsa
