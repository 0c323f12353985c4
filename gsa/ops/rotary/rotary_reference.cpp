// The clear version in ATen: every dtype and device without a kernel of its own.

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <torch/library.h>

#include "gsa/ops/rotary/rotary.h"

namespace gsa {

at::Tensor rotary_reference(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rotary("rotary", "x", x, cos, sin);
  const int64_t half = cos.size(1);
  const auto wide = c10::promoteTypes(x.scalar_type(), cos.scalar_type());
  const at::Tensor c = cos.to(wide).unsqueeze(1), s = sin.to(wide).unsqueeze(1);  // [T,1,half]
  const at::Tensor first = x.narrow(-1, 0, half).to(wide), second = x.narrow(-1, half, half).to(wide);
  const at::Tensor rest = x.narrow(-1, 2 * half, x.size(-1) - 2 * half);
  const auto dtype = x.scalar_type();
  return at::cat({(first * c - second * s).to(dtype), (second * c + first * s).to(dtype), rest}, -1);
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("rotary", rotary_reference);
}

}  // namespace gsa
