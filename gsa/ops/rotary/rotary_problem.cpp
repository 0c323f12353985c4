#include "gsa/ops/rotary/rotary_problem.h"

#include "gsa/ops/element_type.h"

namespace gsa {

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
  params.type = element_type(x).value();
  if (!cos.defined()) return params;
  params.cos = cos.const_data_ptr<float>();
  params.sin = sin.const_data_ptr<float>();
  params.half = static_cast<int>(cos.size(1));
  return params;
}

}  // namespace gsa
