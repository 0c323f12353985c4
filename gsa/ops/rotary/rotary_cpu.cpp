// One pass on the CPU, over the rows of all tokens and heads.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "gsa/ops/rotary/rotary.h"

namespace gsa {
namespace {

constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// x [dim] -> out [dim], the leading 2 * half dimensions rotated in `Wide`.
template <class T, class Wide>
void rotate_row(const T* __restrict__ x, const Wide* __restrict__ cos, const Wide* __restrict__ sin,
                T* __restrict__ out, int64_t half, int64_t dim) {
  for (int64_t i = 0; i < half; ++i) {
    const Wide first = static_cast<Wide>(x[i]), second = static_cast<Wide>(x[half + i]);
    out[i] = static_cast<T>(first * cos[i] - second * sin[i]);
    out[half + i] = static_cast<T>(second * cos[i] + first * sin[i]);
  }
  std::copy(x + 2 * half, x + dim, out + 2 * half);
}

template <class T, class Wide>
void rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& out) {
  const int64_t tokens = x.size(1), heads = x.size(2), dim = x.size(3), half = cos.size(1);
  const T* from = x.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  const Wide *c = cos.const_data_ptr<Wide>(), *s = sin.const_data_ptr<Wide>();
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, heads * dim));
  at::parallel_for(0, x.size(0) * tokens, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t batch = row / tokens, token = row % tokens;
      const T* source = from + batch * x.stride(0) + token * x.stride(1);
      for (int64_t head = 0; head < heads; ++head) {
        rotate_row(source + head * x.stride(2), c + token * half, s + token * half,
                   to + (row * heads + head) * dim, half, dim);
      }
    }
  });
}

at::Tensor rotary_cpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rotary("rotary", "x", x, cos, sin);
  const auto type = x.scalar_type(), wide = cos.scalar_type();
  const bool has_loop = wide == at::kFloat ? type == at::kFloat || type == at::kBFloat16 || type == at::kHalf
                                           : type == at::kDouble;
  if (!has_loop) return rotary_reference(x, cos, sin);
  const at::Tensor rows = x.stride(3) == 1 ? x : x.contiguous(), c = cos.contiguous(), s = sin.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  if (type == at::kFloat) rotate<float, float>(rows, c, s, out);
  if (type == at::kBFloat16) rotate<at::BFloat16, float>(rows, c, s, out);
  if (type == at::kHalf) rotate<at::Half, float>(rows, c, s, out);
  if (type == at::kDouble) rotate<double, double>(rows, c, s, out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(gsa, CPU, library) {
  library.impl("rotary", rotary_cpu);
}

}  // namespace gsa
