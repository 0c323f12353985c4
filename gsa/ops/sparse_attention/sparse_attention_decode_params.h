// What sparse_attention hands to its decode kernel: few new tokens over a long cache. Plain data: no torch,
// no CUDA headers.
#pragma once

#include <cstdint>

namespace gsa {

struct SparseAttentionDecodeParams {
  const void* query = nullptr;       // bf16 [batch, queries, heads, dim]
  const void* key = nullptr;         // bf16 [batch, keys, groups, dim]
  const void* value = nullptr;       // bf16 [batch, keys, groups, dim]
  const int32_t* indices = nullptr;  // [batch, rows, capacity], ascending, padded with -1
  const int32_t* counts = nullptr;   // [batch, rows]
  const int32_t* lengths = nullptr;  // [batch] tokens in each row's cache, or null: every row holds `keys`
  void* out = nullptr;               // bf16 [batch, queries, heads, dim]
  float* lse = nullptr;              // [batch, queries, heads]
  int64_t batch = 0;
  int64_t queries = 0;           // T; query t sits at position t + length - queries
  int64_t keys = 0;              // S
  int64_t key_batch_stride = 0;  // elements from one row's keys to the next; tokens are contiguous
  int64_t value_batch_stride = 0;
  int heads = 0;   // H
  int groups = 0;  // G
  int dim = 0;     // E
  int capacity = 0;
  int query_tile = 1;
  float scale = 0;  // of the dot products
};

namespace decode {

constexpr int kAttentionTile = 16;       // keys a warp takes at a time
constexpr int kMaxAttentionTokens = 8;   // T
constexpr int kMaxAttentionSplits = 16;  // CTAs of a cluster; more than 8 is beyond the portable limit

// Warps of a CTA: where one query's few groups cannot fill the chip, more warps with fewer tiles each.
constexpr int attention_warps(int64_t batch, int64_t queries, int groups, int multiprocessors) {
  return batch * queries * groups * kMaxAttentionSplits < multiprocessors ? 8 : 4;
}

// CTAs that share one query's keys in one group: a power of two with about two CTAs a multiprocessor in all,
// but each warp should have a tile of its own.
constexpr int attention_splits(int64_t batch, int64_t queries, int groups, int capacity,
                               int multiprocessors) {
  const int64_t pairs = batch * queries * groups;
  const int tiles = (capacity + kAttentionTile - 1) / kAttentionTile;
  const int warps = attention_warps(batch, queries, groups, multiprocessors);
  int splits = 1;
  while (splits < kMaxAttentionSplits && splits * warps < tiles && pairs * splits <= multiprocessors)
    splits *= 2;
  return splits;
}

}  // namespace decode

// True where the kernel serves these shapes.
bool sparse_attention_decode_supported(const SparseAttentionDecodeParams& params);

}  // namespace gsa
