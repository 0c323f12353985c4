#include "gsa/attention/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace gsa {
namespace {

// All sizes but the token's, dimension 1.
bool same_but_tokens(const at::Tensor& buffer, const at::Tensor& added, at::ScalarType dtype) {
  if (buffer.dim() != added.dim() || buffer.scalar_type() != dtype || buffer.device() != added.device())
    return false;
  for (int64_t i = 0; i < buffer.dim(); ++i) {
    if (i != 1 && buffer.size(i) != added.size(i)) return false;
  }
  return true;
}

void check_like(const char* name, const at::Tensor& buffer, const at::Tensor& added, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(buffer.defined() == added.defined(), "cache: ", name, " expected ",
                    buffer.defined() ? "as in earlier calls" : "to be absent as in earlier calls");
  if (!added.defined()) return;
  TORCH_CHECK_VALUE(same_but_tokens(buffer, added, dtype), "cache: ", name,
                    " expected the sizes, dtype and device of ", buffer.sizes(), " ", buffer.scalar_type(),
                    " (but tokens), got ", added.sizes(), " ", dtype);
}

}  // namespace

void LayerCache::grow(at::Tensor& buffer, const at::Tensor& like, at::ScalarType dtype,
                      int64_t capacity) const {
  if (!like.defined()) return;
  auto sizes = like.sizes().vec();
  sizes[1] = capacity;
  at::Tensor larger = at::empty(sizes, like.options().dtype(dtype));
  if (length_ > 0) larger.narrow(1, 0, length_).copy_(buffer.narrow(1, 0, length_));
  buffer = larger;
}

void LayerCache::append(const NewTokens& tokens, bool float8_index_key) {
  const auto dtype = tokens.key.scalar_type(), index_dtype = float8_index_key ? at::kFloat8_e4m3fn : dtype;
  if (key_.defined()) {
    check_like("key", key_, tokens.key, dtype);
    check_like("value", value_, tokens.value, dtype);
    check_like("index_key", index_key_, tokens.index_key, index_dtype);
  }
  const int64_t added = tokens.key.size(1), needed = length_ + added;
  const int64_t capacity = key_.defined() ? key_.size(1) : 0;
  if (needed > capacity) {
    const int64_t larger = std::max({needed, 2 * capacity, reserved_, int64_t{64}});
    grow(key_, tokens.key, dtype, larger);
    grow(value_, tokens.value, dtype, larger);
    grow(index_key_, tokens.index_key, index_dtype, larger);
  }
  const auto place = [&](const at::Tensor& buffer) {
    return buffer.defined() ? buffer.narrow(1, length_, added) : buffer;
  };
  rotary_append(tokens, {place(key_), place(value_), place(index_key_)});
  length_ = needed;
}

at::Tensor LayerCache::key() const {
  return key_.narrow(1, 0, length_);
}
at::Tensor LayerCache::value() const {
  return value_.narrow(1, 0, length_);
}
at::Tensor LayerCache::index_key() const {
  return index_key_.defined() ? index_key_.narrow(1, 0, length_) : at::Tensor();
}

void LayerCache::truncate(int64_t length) {
  TORCH_CHECK_VALUE(length >= 0 && length <= length_, "cache: truncate expected a length up to ", length_,
                    ", got ", length);
  length_ = length;
}

int64_t LayerCache::bytes() const {
  int64_t total = 0;
  for (const auto& buffer : {key_, value_, index_key_}) {
    if (buffer.defined()) total += static_cast<int64_t>(buffer.nbytes());
  }
  return total;
}

void KvCache::truncate(int64_t length) {
  for (auto& layer : layers_) layer.truncate(length);
}

void KvCache::reserve(int64_t tokens) {
  for (auto& layer : layers_) layer.reserve(tokens);
}

int64_t KvCache::bytes() const {
  int64_t total = 0;
  for (const auto& layer : layers_) total += layer.bytes();
  return total;
}

}  // namespace gsa
