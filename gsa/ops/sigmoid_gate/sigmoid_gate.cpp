#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "gsa/base/check.h"

namespace gsa {
namespace {

constexpr const char* kOp = "sigmoid_gate";

at::Tensor meta(const at::Tensor& x, const at::Tensor& gate) {
  check_sigmoid_gate(x, gate);
  return at::empty_like(x);
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const at::Tensor& grad, const at::Tensor& x,
                                                 const at::Tensor& gate) {
  return {at::empty_like(x), at::empty_like(gate)};
}

}  // namespace

void check_sigmoid_gate(const at::Tensor& x, const at::Tensor& gate) {
  check_floating(kOp, "x", x);
  TORCH_CHECK_VALUE(gate.sizes() == x.sizes(), kOp, ": gate expected the shape of x ", x.sizes(), ", got ",
                    gate.sizes());
  check_same_kind(kOp, "gate", gate, "x", x);
}

at::Tensor sigmoid_gate(const at::Tensor& x, const at::Tensor& gate) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("gsa::sigmoid_gate", "").typed<decltype(sigmoid_gate)>();
  return op.call(x, gate);
}

std::tuple<at::Tensor, at::Tensor> sigmoid_gate_backward(const at::Tensor& grad, const at::Tensor& x,
                                                         const at::Tensor& gate) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gsa::sigmoid_gate_backward", "")
                             .typed<decltype(sigmoid_gate_backward)>();
  return op.call(grad, x, gate);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def("sigmoid_gate(Tensor x, Tensor gate) -> Tensor");
  library.def("sigmoid_gate_backward(Tensor grad, Tensor x, Tensor gate) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("sigmoid_gate", meta);
  library.impl("sigmoid_gate_backward", backward_meta);
}

}  // namespace gsa
