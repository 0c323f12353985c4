// How the Hopper forward kernel cuts its work: pure host arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace gsa::sparse_attention {

inline constexpr int kTileQueries = 64;  // at most, neighbouring queries that share one gathered list of keys
inline constexpr int kBlockKeys = 64;    // keys of one pipeline stage
inline constexpr int kMaxWarpgroups = 3;
inline constexpr int kMaxSets = 4;  // sets of 64 matrix rows in a thread block

// A set of 64 matrix rows holds 64 / padded queries with the `padded` heads of their group (the group size
// rounded up to a power of two, spare rows are zero). A tile of `queries` has `sets` of them in each of
// `parts` thread blocks, where `warpgroups` warpgroups attend one or two of them each.
struct Packing {
  int padded;
  int padded_log2;
  int queries;
  int sets;
  int warpgroups;
  int parts;
};

// Per-query rows: three warpgroups with one set each, so that two are at their softmax while the third has
// the tensor cores; a tile is then 48 queries. Shared rows come in tiles of 64 queries: two warpgroups with
// two sets.
constexpr Packing pack_group(int heads, int kv_heads, bool shared_rows) {
  const int group = heads / kv_heads;
  int log2 = 0;
  while ((1 << log2) < group) ++log2;
  const int padded = 1 << log2;
  if (padded >= 4 && !shared_rows) return {padded, log2, kTileQueries * 3 / 4, 3, 3, padded / 4};
  const int sets = std::min(padded, kMaxSets);
  return {padded, log2, kTileQueries, sets, std::min(sets, 2), padded / sets};
}

constexpr int tiles_of(int queries, int tile_queries) {
  return (queries + tile_queries - 1) / tile_queries;
}

constexpr int64_t round_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

inline constexpr int kMaxWalk = 65536;

// Keys that the walk of one tile may hold. Real selections stay below 7 times the budget; a tile with more
// distinct keys than fit here goes to the generic kernel.
constexpr int walk_capacity(int keys, int capacity) {
  const int64_t all = std::min<int64_t>(keys, int64_t{kTileQueries} * capacity);
  const int64_t most = std::clamp<int64_t>(8 * int64_t{capacity}, 16384, kMaxWalk);
  return static_cast<int>(round_up(std::min(all, most), kBlockKeys));
}

// One block of a walk: 64 masks (of query q: which of the block's keys it attends), the set of queries that
// attend any, and for each quarter of the tile (16 queries) a byte: how many blocks further on its next block
// lies.
inline constexpr int kMaskWords = kBlockKeys + 2;

// Where the parts of the workspace begin, in bytes. Walks are built for `chunk_tiles` tiles at a time, so
// that the workspace stays small.
struct WalkWorkspace {
  int capacity;     // keys of a walk
  int chunk_tiles;  // tiles of one round
  int builders;     // thread blocks of the kernel that builds walks; each owns scratch for one tile
  size_t keys, masks, blocks, redo, scratch_keys, scratch_masks, bytes;
};

inline WalkWorkspace walk_workspace(int64_t tiles, int keys, int capacity) {
  constexpr size_t kBudget = size_t{224} << 20;
  constexpr int kMaxBuilders = 264;
  WalkWorkspace w{};
  w.capacity = walk_capacity(keys, capacity);
  const size_t walk = size_t(w.capacity) * 4 + size_t(w.capacity / kBlockKeys) * kMaskWords * 8 + 4;
  const int64_t rounds = std::max<int64_t>(1, (tiles * walk + kBudget - 1) / kBudget);
  w.chunk_tiles = static_cast<int>((tiles + rounds - 1) / rounds);
  w.builders = std::min(w.chunk_tiles, kMaxBuilders);
  size_t offset = 0;
  const auto take = [&offset](size_t bytes) {
    const size_t start = offset;
    offset += round_up(static_cast<int64_t>(bytes), 256);
    return start;
  };
  w.keys = take(size_t(w.chunk_tiles) * w.capacity * 4);
  w.masks = take(size_t(w.chunk_tiles) * (w.capacity / kBlockKeys) * kMaskWords * 8);
  w.blocks = take(size_t(w.chunk_tiles) * 4);
  w.redo = take(size_t(tiles) * 4);
  w.scratch_keys = take(size_t(w.builders) * w.capacity * 4);
  w.scratch_masks = take(size_t(w.builders) * w.capacity * 8);
  w.bytes = offset;
  return w;
}

}  // namespace gsa::sparse_attention
