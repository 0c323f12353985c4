#pragma once
// The elementwise gate of Gated Sparse Attention: G1 on the attention output, G2 on the values (semantics:
// lines 2 and 7).

#include <ATen/core/Tensor.h>

#include <tuple>

namespace gsa {

/// x * sigmoid(gate), elementwise. Both tensors have the same shape (any), floating dtype and device.
/// Differentiable in both. Throws ValueError / TypeError on a mismatch.
at::Tensor sigmoid_gate(const at::Tensor& x, const at::Tensor& gate);

/// The argument checks of sigmoid_gate, for its implementations.
void check_sigmoid_gate(const at::Tensor& x, const at::Tensor& gate);

/// Gradients (grad_x, grad_gate) of sigmoid_gate for the output gradient `grad`.
std::tuple<at::Tensor, at::Tensor> sigmoid_gate_backward(const at::Tensor& grad, const at::Tensor& x,
                                                         const at::Tensor& gate);

/// The op and its backward on every device without a kernel of its own: kernels fall back to them for dtypes
/// they do not take.
at::Tensor sigmoid_gate_reference(const at::Tensor& x, const at::Tensor& gate);
std::tuple<at::Tensor, at::Tensor> sigmoid_gate_backward_reference(const at::Tensor& grad,
                                                                   const at::Tensor& x,
                                                                   const at::Tensor& gate);

}  // namespace gsa
