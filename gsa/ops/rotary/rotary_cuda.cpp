// The torch side of rotary's CUDA kernel.

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "gsa/ops/element_type.h"
#include "gsa/ops/rotary/rotary.h"
#include "gsa/ops/rotary/rotary_kernel.h"
#include "gsa/ops/rotary/rotary_problem.h"

namespace gsa {
namespace {

at::Tensor rotary_cuda(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rotary("rotary", "x", x, cos, sin);
  if (!element_type(x) || cos.scalar_type() != at::kFloat) return rotary_reference(x, cos, sin);
  const c10::cuda::CUDAGuard device(x.device());
  const at::Tensor rows = x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
  const at::Tensor packed_cos = cos.contiguous(), packed_sin = sin.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  const RotaryParams params = rotary_params(rows, packed_cos, packed_sin, out);
  C10_CUDA_CHECK(launch_rotary(params, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("rotary", rotary_cuda);
}

}  // namespace gsa
