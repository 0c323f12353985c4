#include "gsa/attention/kv_cache.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace gsa {
namespace {

// All sizes but the token's, dimension 1.
bool same_but_tokens(const at::Tensor& a, const at::Tensor& b) {
  if (a.dim() != b.dim() || a.scalar_type() != b.scalar_type() || a.device() != b.device()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (i != 1 && a.size(i) != b.size(i)) return false;
  }
  return true;
}

void check_like(const char* name, const at::Tensor& buffer, const at::Tensor& added) {
  TORCH_CHECK_VALUE(buffer.defined() == added.defined(), "cache: ", name, " expected ",
                    buffer.defined() ? "as in earlier calls" : "to be absent as in earlier calls");
  if (!added.defined()) return;
  TORCH_CHECK_VALUE(same_but_tokens(buffer, added), "cache: ", name,
                    " expected the sizes, dtype and device of ", buffer.sizes(), " ", buffer.scalar_type(),
                    " (but tokens), got ", added.sizes(), " ", added.scalar_type());
}

void write(at::Tensor& buffer, int64_t begin, const at::Tensor& added) {
  if (added.defined()) buffer.narrow(1, begin, added.size(1)).copy_(added);
}

}  // namespace

void LayerCache::grow(at::Tensor& buffer, const at::Tensor& like, int64_t capacity) const {
  if (!like.defined()) return;
  auto sizes = like.sizes().vec();
  sizes[1] = capacity;
  at::Tensor larger = at::empty(sizes, like.options());
  if (length_ > 0) larger.narrow(1, 0, length_).copy_(buffer.narrow(1, 0, length_));
  buffer = larger;
}

void LayerCache::append(const at::Tensor& key, const at::Tensor& value, const at::Tensor& index_key) {
  if (key_.defined()) {
    check_like("key", key_, key);
    check_like("value", value_, value);
    check_like("index_key", index_key_, index_key);
  }
  const int64_t needed = length_ + key.size(1);
  const int64_t capacity = key_.defined() ? key_.size(1) : 0;
  if (needed > capacity) {
    const int64_t larger = std::max({needed, 2 * capacity, reserved_, int64_t{64}});
    grow(key_, key, larger);
    grow(value_, value, larger);
    grow(index_key_, index_key, larger);
  }
  write(key_, length_, key);
  write(value_, length_, value);
  write(index_key_, length_, index_key);
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
