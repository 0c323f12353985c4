// The torch side of rotary's CUDA kernel.

#include "gsa/ops/rotary/rotary_cuda.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "gsa/ops/rotary/rotary.h"
#include "gsa/ops/rotary/rotary_kernel.h"

namespace gsa {
namespace {

at::Tensor rotary_cuda(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rotary("rotary", "x", x, cos, sin);
  if (!rotary_type(x) || cos.scalar_type() != at::kFloat) return rotary_reference(x, cos, sin);
  const c10::cuda::CUDAGuard device(x.device());
  const at::Tensor rows = x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
  const at::Tensor packed_cos = cos.contiguous(), packed_sin = sin.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  const RotaryParams params = rotary_params(rows, packed_cos, packed_sin, out);
  C10_CUDA_CHECK(launch_rotary(params, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

std::optional<RotaryType> rotary_type(const at::Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat:
      return RotaryType::kFloat;
    case at::kHalf:
      return RotaryType::kHalf;
    case at::kBFloat16:
      return RotaryType::kBfloat16;
    default:
      return std::nullopt;
  }
}

RotaryStrides rotary_strides(const at::Tensor& x) {
  const auto stride = [&](int64_t dim) { return x.size(dim) > 1 ? x.stride(dim) : 0; };
  return {stride(0), stride(1), stride(2)};
}

RotaryParams rotary_params(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                           const at::Tensor& out) {
  RotaryParams params;
  params.x = x.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.x_strides = rotary_strides(x);
  params.out_strides = rotary_strides(out);
  params.batch = x.size(0);
  params.tokens = x.size(1);
  params.heads = static_cast<int>(x.size(2));
  params.dim = static_cast<int>(x.size(3));
  params.type = rotary_type(x).value();
  if (!cos.defined()) return params;
  params.cos = cos.const_data_ptr<float>();
  params.sin = sin.const_data_ptr<float>();
  params.half = static_cast<int>(cos.size(1));
  return params;
}

TORCH_LIBRARY_IMPL(gsa, CUDA, library) {
  library.impl("rotary", rotary_cuda);
}

}  // namespace gsa
