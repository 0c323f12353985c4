#pragma once
// The problem of rotary's kernels as tensors give it.

#include <ATen/core/Tensor.h>

#include "gsa/ops/rotary/rotary_params.h"

namespace gsa {

/// Strides of x [B,T,H,E]. Those of dimensions of one element may be anything: 0 keeps them from deciding
/// about alignment.
RotaryStrides rotary_strides(const at::Tensor& x);

/// Rows of x [B,T,H,E] to rows of out of the same shape, by angles [T, D/2] in fp32 (undefined: D = 0). The
/// last dimensions of x and out are contiguous, cos and sin are contiguous.
RotaryParams rotary_params(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                           const at::Tensor& out);

}  // namespace gsa
