#pragma once
// The indexer's activation of a head's logit (semantics: line 3, Eq. 7 of the paper).

#include <ATen/core/Tensor.h>

#include <string_view>

namespace gsa {

enum class Activation { kSigmoid, kHardSigmoid, kRelu };

/// "sigmoid", "hard_sigmoid" or "relu"; ValueError naming `op` otherwise.
Activation parse_activation(std::string_view op, std::string_view name);

/// sigmoid(z), clamp(z/4 + 1/2, 0, 1) or max(z, 0).
at::Tensor activate(const at::Tensor& logits, Activation activation);

/// d act(z) / dz, from the logits z.
at::Tensor activation_derivative(const at::Tensor& logits, Activation activation);

}  // namespace gsa
