// The separate ops, then copies: every dtype and device without a kernel of its own.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "gsa/ops/rotary/rotary.h"
#include "gsa/ops/rotary_append/rotary_append.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate.h"

namespace gsa {
namespace {

at::Tensor turned(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return cos.defined() ? rotary(x, cos, sin) : x;
}

at::Tensor gated(const NewTokens& tokens) {
  if (!tokens.value_gate.defined()) return tokens.value;
  const at::Tensor value = sigmoid_gate(tokens.value, tokens.value_gate);
  return tokens.gate_scale == 1 ? value : value * tokens.gate_scale;
}

}  // namespace

void rotary_append_reference(const NewTokens& tokens, const CachePlaces& places) {
  check_rotary_append(tokens, places);
  const at::NoGradGuard no_gradient;
  if (tokens.query.defined()) tokens.query.copy_(turned(tokens.query, tokens.cos, tokens.sin));
  places.key.copy_(turned(tokens.key, tokens.cos, tokens.sin));
  places.value.copy_(gated(tokens));
  if (!tokens.index_key.defined()) return;
  if (tokens.index_query.defined())
    tokens.index_query.copy_(turned(tokens.index_query, tokens.index_cos, tokens.index_sin));
  const at::Tensor index_key =
      turned(tokens.index_key.unsqueeze(2), tokens.index_cos, tokens.index_sin).squeeze(2);
  constexpr double kLargest = 448;  // beyond, a conversion to e4m3 alone would give NaN
  const bool float8 = places.index_key.scalar_type() == at::kFloat8_e4m3fn;
  places.index_key.copy_(float8 ? index_key.clamp(-kLargest, kLargest) : index_key);
}

TORCH_LIBRARY_IMPL(gsa, CompositeExplicitAutograd, library) {
  library.impl("rotary_append", rotary_append_op<rotary_append_reference>);
}

}  // namespace gsa
