#pragma once
// Positions, value gate and cache write of new tokens in one step (semantics: lines 1 to 3). For inference:
// no gradients.

#include <ATen/core/Tensor.h>

#include <optional>

namespace gsa {

/// T new tokens as a layer's projections give them. All have one dtype; what may be undefined says so.
struct NewTokens {
  at::Tensor query{};                   // [B,T,H,E], rotated in place; or undefined
  at::Tensor index_query{};             // [B,T,J,I], rotated in place; or undefined
  at::Tensor key{}, value{};            // [B,T,G,E]
  at::Tensor value_gate{};              // [B,T,G,E], logits of gate G2; undefined: values pass
  at::Tensor index_key{};               // [B,T,I]; undefined: none
  at::Tensor cos{}, sin{};              // fp32 or fp64 [T, up to E/2]; undefined: queries and keys pass
  at::Tensor index_cos{}, index_sin{};  // fp32 or fp64 [T, up to I/2]; undefined: the index vectors pass
  double gate_scale = 1;                // 1, or 2 for gates that start as the identity
};

/// Where a cache holds these tokens: views with any strides.
struct CachePlaces {
  at::Tensor key{}, value{};  // [B,T,G,E] in the dtype of the tokens
  at::Tensor index_key{};     // [B,T,I] in that dtype or in float8_e4m3fn; undefined without index keys
};

/// query and index_query become rotary(...) of themselves, and the places receive rotary(key), gate_scale *
/// sigmoid_gate(value, value_gate) and rotary(index_key): what the separate ops give, rounded as they round.
/// From there index keys go to e4m3 as the nearest number, saturating at 448. Throws ValueError / TypeError
/// on a mismatch, ValueError where gradients are wanted.
void rotary_append(const NewTokens& tokens, const CachePlaces& places);

/// The argument checks of rotary_append, for its implementations.
void check_rotary_append(const NewTokens& tokens, const CachePlaces& places);

/// The op on every device without a kernel of its own: kernels fall back to it for dtypes they do not take.
void rotary_append_reference(const NewTokens& tokens, const CachePlaces& places);

/// An implementation with the op's own argument list.
template <void (*implementation)(const NewTokens&, const CachePlaces&)>
void rotary_append_op(const std::optional<at::Tensor>& query, const std::optional<at::Tensor>& index_query,
                      const at::Tensor& key_out, const at::Tensor& value_out,
                      const std::optional<at::Tensor>& index_key_out, const at::Tensor& key,
                      const at::Tensor& value, const std::optional<at::Tensor>& value_gate,
                      const std::optional<at::Tensor>& index_key, const std::optional<at::Tensor>& cos,
                      const std::optional<at::Tensor>& sin, const std::optional<at::Tensor>& index_cos,
                      const std::optional<at::Tensor>& index_sin, double gate_scale) {
  const auto given = [](const std::optional<at::Tensor>& tensor) { return tensor.value_or(at::Tensor()); };
  implementation({given(query), given(index_query), key, value, given(value_gate), given(index_key),
                  given(cos), given(sin), given(index_cos), given(index_sin), gate_scale},
                 {key_out, value_out, given(index_key_out)});
}

}  // namespace gsa
