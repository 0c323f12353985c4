// The clear version in ATen: every dtype and device without a kernel of its own.

#include <ATen/TensorOperators.h>
#include <ATen/ops/sigmoid.h>
#include <torch/library.h>

#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

namespace gsa {

at::Tensor sigmoid_gate_reference(const at::Tensor& x, const at::Tensor& gate) {
  check_sigmoid_gate(x, gate);
  return x * at::sigmoid(gate);
}

std::tuple<at::Tensor, at::Tensor> sigmoid_gate_backward_reference(const at::Tensor& grad,
                                                                   const at::Tensor& x,
                                                                   const at::Tensor& gate) {
  const at::Tensor open = at::sigmoid(gate);
  return {grad * open, grad * x * open * (1 - open)};
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("sigmoid_gate", sigmoid_gate_reference);
  library.impl("sigmoid_gate_backward", sigmoid_gate_backward_reference);
}

}  // namespace gsa
