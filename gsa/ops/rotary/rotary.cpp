#include "gsa/ops/rotary/rotary.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gsa/base/check.h"

namespace gsa {
namespace {

constexpr const char* kOp = "rotary";

at::Tensor meta(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  check_rotary(kOp, "x", x, cos, sin);
  return at::empty(x.sizes(), x.options());
}

}  // namespace

void check_rotary(const char* op, const char* name, const at::Tensor& x, const at::Tensor& cos,
                  const at::Tensor& sin) {
  check_floating(op, name, x);
  check_shape(op, name, x, {kAny, kAny, kAny, kAny}, "[B,T,H,E]");
  TORCH_CHECK_TYPE(cos.scalar_type() == at::kFloat || cos.scalar_type() == at::kDouble, op,
                   ": cos expected fp32 or fp64, got ", cos.scalar_type());
  TORCH_CHECK_VALUE(cos.dim() == 2 && cos.size(0) == x.size(1) && 2 * cos.size(1) <= x.size(3), op,
                    ": cos expected shape [T, up to E/2] for ", name, " [B,T,H,E] = ", x.sizes(), ", got ",
                    cos.sizes());
  TORCH_CHECK_VALUE(sin.sizes() == cos.sizes(), op, ": sin expected the shape of cos ", cos.sizes(), ", got ",
                    sin.sizes());
  check_same_kind(op, "sin", sin, "cos", cos);
  check_same_device(op, "cos", cos, name, x);
}

at::Tensor rotary(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::rotary", "").typed<decltype(rotary)>();
  return op.call(x, cos, sin);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def("rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("rotary", meta);
}

}  // namespace gsa
