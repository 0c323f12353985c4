// The torch side of sigmoid_gate's CUDA kernels.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "gsa/ops/element_type.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate_kernel.h"

namespace gsa {
namespace {

at::Tensor forward(const at::Tensor& x, const at::Tensor& gate) {
  check_sigmoid_gate(x, gate);
  const auto type = element_type(x);
  if (!type) return sigmoid_gate_reference(x, gate);
  const c10::cuda::CUDAGuard device(x.device());
  const at::Tensor packed_x = x.contiguous(), packed_gate = gate.contiguous();
  at::Tensor out = at::empty_like(packed_x);
  SigmoidGateParams params;
  params.x = packed_x.const_data_ptr();
  params.gate = packed_gate.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.size = x.numel();
  params.type = *type;
  C10_CUDA_CHECK(launch_sigmoid_gate_forward(params, c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& x,
                                            const at::Tensor& gate) {
  check_sigmoid_gate(x, gate);
  check_sigmoid_gate(x, grad);
  const auto type = element_type(x);
  if (!type) return sigmoid_gate_backward_reference(grad, x, gate);
  const c10::cuda::CUDAGuard device(x.device());
  const at::Tensor packed_x = x.contiguous(), packed_gate = gate.contiguous(),
                   packed_grad = grad.contiguous();
  const at::Tensor grad_x = at::empty_like(packed_x), grad_gate = at::empty_like(packed_x);
  SigmoidGateParams params;
  params.x = packed_x.const_data_ptr();
  params.gate = packed_gate.const_data_ptr();
  params.grad_out = packed_grad.const_data_ptr();
  params.grad_x = grad_x.mutable_data_ptr();
  params.grad_gate = grad_gate.mutable_data_ptr();
  params.size = x.numel();
  params.type = *type;
  C10_CUDA_CHECK(launch_sigmoid_gate_backward(params, c10::cuda::getCurrentCUDAStream()));
  return {grad_x, grad_gate};
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("sigmoid_gate", forward);
  library.impl("sigmoid_gate_backward", backward);
}

}  // namespace gsa
