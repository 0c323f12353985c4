#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

namespace gsa {
namespace {

struct SigmoidGate : torch::autograd::Function<SigmoidGate> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& gate) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->save_for_backward({x, gate});
    return sigmoid_gate(x, gate);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto [grad_x, grad_gate] = sigmoid_gate_backward(grads[0], saved[0], saved[1]);
    return {grad_x, grad_gate};
  }
};

at::Tensor sigmoid_gate_autograd(const at::Tensor& x, const at::Tensor& gate) {
  return SigmoidGate::apply(x, gate);
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, Autograd, library) {
  library.impl("sigmoid_gate", sigmoid_gate_autograd);
}

}  // namespace gsa
