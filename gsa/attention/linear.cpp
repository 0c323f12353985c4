#include "gsa/attention/linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>

namespace gsa {

at::Tensor shape_only(at::IntArrayRef sizes) {
  return at::empty(sizes, at::TensorOptions().device(at::kMeta).dtype(at::kFloat));
}

Linear::Linear(int64_t in, int64_t out, bool with_bias) : weight(shape_only({out, in})) {
  if (with_bias) bias = shape_only({out});
}

at::Tensor Linear::operator()(const at::Tensor& x) const {
  const auto dtype = x.scalar_type();
  if (!bias.defined()) return at::linear(x, weight.to(dtype));
  return at::linear(x, weight.to(dtype), bias.to(dtype));
}

}  // namespace gsa
