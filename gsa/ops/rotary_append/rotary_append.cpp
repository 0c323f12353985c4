#include "gsa/ops/rotary_append/rotary_append.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "gsa/base/check.h"
#include "gsa/ops/rotary/rotary.h"

namespace gsa {
namespace {

constexpr const char* kOp = "rotary_append";

std::optional<at::Tensor> present(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

/// `tensor` has the shape, dtype and device of `like`.
void check_like(const char* name, const at::Tensor& tensor, const char* like_name, const at::Tensor& like) {
  TORCH_CHECK_VALUE(tensor.defined() && tensor.sizes() == like.sizes(), kOp, ": ", name,
                    " expected the shape of ", like_name, " ", like.sizes(), ", got ", tensor.sizes());
  check_same_kind(kOp, name, tensor, like_name, like);
}

void check_angles(const char* name, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK_VALUE(cos.defined() == sin.defined(), kOp, ": the cos and sin of ", name,
                    " expected both or neither");
  if (cos.defined()) check_rotary(kOp, name, x, cos, sin);
}

/// [B,T,heads,dim] with any number of heads, or undefined.
void check_query(const char* name, const at::Tensor& query, int64_t dim, const char* legend,
                 const NewTokens& tokens) {
  if (!query.defined()) return;
  check_shape(kOp, name, query, {tokens.key.size(0), tokens.key.size(1), kAny, dim}, legend);
  check_same_kind(kOp, name, query, "key", tokens.key);
}

void check_index_vectors(const NewTokens& tokens, const at::Tensor& place) {
  const at::Tensor& index_key = tokens.index_key;
  TORCH_CHECK_VALUE(index_key.defined() == place.defined(), kOp,
                    ": index_key and index_key_out expected both or neither");
  TORCH_CHECK_VALUE(index_key.defined() || !tokens.index_query.defined(), kOp,
                    ": index_query expected an index_key beside it");
  if (!index_key.defined()) return;
  check_shape(kOp, "index_key", index_key, {tokens.key.size(0), tokens.key.size(1), kAny}, "[B,T,I]");
  check_same_kind(kOp, "index_key", index_key, "key", tokens.key);
  check_query("index_query", tokens.index_query, index_key.size(2), "[B,T,J,I]", tokens);
  TORCH_CHECK_VALUE(place.sizes() == index_key.sizes(), kOp,
                    ": index_key_out expected the shape of index_key ", index_key.sizes(), ", got ",
                    place.sizes());
  TORCH_CHECK_TYPE(
      place.scalar_type() == index_key.scalar_type() || place.scalar_type() == at::kFloat8_e4m3fn, kOp,
      ": index_key_out expected the dtype of index_key (", index_key.scalar_type(),
      ") or float8_e4m3fn, got ", place.scalar_type());
  check_same_device(kOp, "index_key_out", place, "key", tokens.key);
  check_angles("index_key", index_key.unsqueeze(2), tokens.index_cos, tokens.index_sin);
}

void check_no_gradient(const NewTokens& tokens) {
  if (!at::GradMode::is_enabled()) return;
  for (const at::Tensor& x :
       {tokens.query, tokens.index_query, tokens.key, tokens.value, tokens.value_gate, tokens.index_key}) {
    TORCH_CHECK_VALUE(!x.defined() || !x.requires_grad(), kOp,
                      ": expected no gradients, got a tensor that requires one; call it under no_grad");
  }
}

void meta(const NewTokens& tokens, const CachePlaces& places) {
  check_rotary_append(tokens, places);
}

}  // namespace

void check_rotary_append(const NewTokens& tokens, const CachePlaces& places) {
  const at::Tensor& key = tokens.key;
  check_floating(kOp, "key", key);
  check_shape(kOp, "key", key, {kAny, kAny, kAny, kAny}, "[B,T,G,E]");
  check_query("query", tokens.query, key.size(3), "[B,T,H,E]", tokens);
  check_like("key_out", places.key, "key", key);
  check_like("value", tokens.value, "key", key);
  check_like("value_out", places.value, "key", key);
  if (tokens.value_gate.defined()) check_like("value_gate", tokens.value_gate, "key", key);
  TORCH_CHECK_VALUE(tokens.gate_scale == 1 || tokens.gate_scale == 2, kOp,
                    ": gate_scale expected 1 or 2, got ", tokens.gate_scale);
  check_angles("key", key, tokens.cos, tokens.sin);
  check_index_vectors(tokens, places.index_key);
  check_no_gradient(tokens);
}

void rotary_append(const NewTokens& tokens, const CachePlaces& places) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("gsa::rotary_append", "")
                             .typed<decltype(rotary_append_op<rotary_append_reference>)>();
  op.call(present(tokens.query), present(tokens.index_query), places.key, places.value,
          present(places.index_key), tokens.key, tokens.value, present(tokens.value_gate),
          present(tokens.index_key), present(tokens.cos), present(tokens.sin), present(tokens.index_cos),
          present(tokens.index_sin), tokens.gate_scale);
}

TORCH_LIBRARY_FRAGMENT(gsa, library) {
  library.def(
      "rotary_append(Tensor(a!)? query, Tensor(b!)? index_query, Tensor(c!) key_out, Tensor(d!) value_out, "
      "Tensor(e!)? index_key_out, Tensor key, Tensor value, Tensor? value_gate, Tensor? index_key, Tensor? "
      "cos, "
      "Tensor? sin, Tensor? index_cos, Tensor? index_sin, float gate_scale=1.0) -> ()");
}

TORCH_LIBRARY_IMPL(gsa, Meta, library) {
  library.impl("rotary_append", rotary_append_op<meta>);
}

}  // namespace gsa
