#include "gsa/ops/indexer/activation.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <c10/util/Exception.h>

namespace gsa {

Activation parse_activation(std::string_view op, std::string_view name) {
  if (name == "sigmoid") return Activation::kSigmoid;
  if (name == "hard_sigmoid") return Activation::kHardSigmoid;
  if (name == "relu") return Activation::kRelu;
  TORCH_CHECK_VALUE(false, op, ": activation expected 'sigmoid', 'hard_sigmoid' or 'relu', got '", name, "'");
}

namespace {

/// On a CPU at::sigmoid rounds the elements that do not fill a vector differently from the others, so equal
/// logits would score by where they lie, and ties would not be ties. Its parts do not; but its derivative is
/// the stable one.
at::Tensor uniform_sigmoid(const at::Tensor& logits) {
  if (!logits.is_cpu() || (logits.requires_grad() && at::GradMode::is_enabled())) return at::sigmoid(logits);
  return at::neg(logits).exp_().add_(1).reciprocal_();
}

}  // namespace

at::Tensor activate(const at::Tensor& logits, Activation activation) {
  switch (activation) {
    case Activation::kSigmoid:
      return uniform_sigmoid(logits);
    case Activation::kHardSigmoid:
      return at::clamp(logits * 0.25 + 0.5, 0.0, 1.0);
    default:
      return at::relu(logits);
  }
}

at::Tensor activation_derivative(const at::Tensor& logits, Activation activation) {
  switch (activation) {
    case Activation::kSigmoid: {
      const at::Tensor value = at::sigmoid(logits);
      return value * (1 - value);
    }
    case Activation::kHardSigmoid:
      return logits.gt(-2.0).logical_and(logits.lt(2.0)).to(logits.scalar_type()) * 0.25;
    default:
      return logits.gt(0.0).to(logits.scalar_type());
  }
}

}  // namespace gsa
