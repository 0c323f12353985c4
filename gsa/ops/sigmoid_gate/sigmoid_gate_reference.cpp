// The clear version in ATen: every dtype and device without a kernel of its own.

#include <ATen/TensorOperators.h>
#include <ATen/ops/sigmoid.h>
#include <torch/library.h>

#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

namespace gsa {
namespace {

at::Tensor forward(const at::Tensor& x, const at::Tensor& gate) {
  check_sigmoid_gate(x, gate);
  return x * at::sigmoid(gate);
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                            const at::Tensor& gate) {
  const at::Tensor open = at::sigmoid(gate);
  return {grad * open, grad * x * open * (1 - open)};
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("sigmoid_gate", forward);
  library.impl("sigmoid_gate_backward", backward);
}

}  // namespace gsa
