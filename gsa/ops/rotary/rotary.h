#pragma once
// Rotary position embedding, half-split: dimension i is rotated with dimension i + D/2.

#include <ATen/core/Tensor.h>

namespace gsa {

/// Rotates the first D dimensions of x [B,T,H,E] (D <= E, the others pass) by the angles whose cos and sin
/// are given, fp32 or fp64 [T, D/2]:
///   out[i] = x[i] cos[i] - x[i + D/2] sin[i],   out[i + D/2] = x[i + D/2] cos[i] + x[i] sin[i].
/// Arithmetic is in the wider of the two dtypes, rounded once to that of x. Differentiable in x. The result
/// is contiguous; x may have any strides. Throws ValueError / TypeError on a mismatch.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// The argument checks of rotary, for its implementations; `op` and `name` are what the message calls them.
void check_rotary(const char* op, const char* name, const at::Tensor& x, const at::Tensor& cos,
                  const at::Tensor& sin);

/// The op on every device without a kernel of its own: kernels fall back to it for dtypes they do not take.
at::Tensor rotary_reference(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace gsa
