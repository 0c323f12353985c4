#pragma once
// What decoding remembers of earlier tokens: keys (after RoPE), values (after gate G2) and index keys (after
// RoPE, in a dtype of their own).

#include <ATen/core/Tensor.h>

#include <vector>

#include "gsa/ops/rotary_append/rotary_append.h"

namespace gsa {

/// One layer's cache. Capacity grows by doubling; contents are token-major.
class LayerCache {
 public:
  /// Appends what the op gsa::rotary_append makes of T new tokens, and rotates their queries in place. Index
  /// keys are stored as e4m3 if asked for. The batch and the other sizes must be those of the first call
  /// (ValueError otherwise).
  void append(const NewTokens& tokens, bool float8_index_key = false);

  /// Views of the tokens so far: [B,S,G,E], [B,S,G,E], [B,S,I] (undefined without indexer).
  at::Tensor key() const;
  at::Tensor value() const;
  at::Tensor index_key() const;

  int64_t length() const { return length_; }
  /// Forgets all tokens from `length` on; keeps the memory.
  void truncate(int64_t length);
  /// Makes room for `tokens` in all before they come, so that a long prompt is copied once.
  void reserve(int64_t tokens) { reserved_ = tokens; }
  int64_t bytes() const;

 private:
  void grow(at::Tensor& buffer, const at::Tensor& like, at::ScalarType dtype, int64_t capacity) const;

  at::Tensor key_, value_, index_key_;
  int64_t length_ = 0;
  int64_t reserved_ = 0;
};

/// The caches of all layers. One object serves one batch of sequences of equal length; use without gradients.
class KvCache {
 public:
  explicit KvCache(int64_t layers) : layers_(layers) {}

  LayerCache& layer(int64_t index) { return layers_.at(index); }
  /// Tokens so far.
  int64_t length() const { return layers_.empty() ? 0 : layers_.front().length(); }
  void truncate(int64_t length);
  void reserve(int64_t tokens);
  int64_t bytes() const;

 private:
  std::vector<LayerCache> layers_;
};

}  // namespace gsa
