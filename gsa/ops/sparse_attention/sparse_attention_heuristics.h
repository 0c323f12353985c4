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

// Quarters of a tile (16 queries) that a set has queries of.
constexpr int set_quarters(const Packing& packing) {
  return std::max(1, kTileQueries / packing.padded / 16);
}

constexpr int tiles_of(int queries, int tile_queries) {
  return (queries + tile_queries - 1) / tile_queries;
}

constexpr int64_t round_up(int64_t x, int64_t unit) {
  return (x + unit - 1) / unit * unit;
}

inline constexpr int kWalkRange = 12288;   // keys that the builder of a walk looks at together
inline constexpr int kMaxSegment = 65536;  // keys that it sorts together
inline constexpr int kLongSegment = 16384;

// Distinct keys that a tile can want at most.
constexpr int64_t distinct_keys(int keys, int capacity, int tile_queries) {
  return std::min<int64_t>(keys, int64_t{tile_queries} * capacity);
}

// Keys that the walk of a tile may hold in the first rounds. Real selections stay below 7 times the budget; a
// tile with more distinct keys overflows, and is attended in the rounds for long walks.
constexpr int walk_capacity(int keys, int capacity, int tile_queries) {
  const int64_t most = std::clamp<int64_t>(8 * int64_t{capacity}, 16384, kMaxSegment);
  return static_cast<int>(round_up(std::min(distinct_keys(keys, capacity, tile_queries), most), kBlockKeys));
}

// The same for long walks: room for all, and for the part of its last block that each segment leaves empty. A
// segment ends with the range in which it passes kLongSegment.
constexpr int long_walk_capacity(int keys, int capacity, int tile_queries) {
  const int64_t all = distinct_keys(keys, capacity, tile_queries);
  return static_cast<int>(round_up(all, kBlockKeys) + all / kLongSegment * kBlockKeys);
}

// One block of a walk: 64 masks (of query q: which of the block's keys it attends), the set of queries that
// attend any, and for each quarter of the tile (16 queries) a byte: how many blocks further on the next one
// lies that its set of rows wants.
inline constexpr int kMaskWords = kBlockKeys + 2;

// Walks are built for some tiles at a time, so that the workspace stays small. Offsets are in bytes.
struct WalkRound {
  int capacity = 0;  // keys of a walk
  int tiles = 0;     // of one round; 0: there are no such rounds
  int segment = 0;   // keys of a tile that are sorted together, at most
  int builders = 0;  // thread blocks of the kernel that builds walks; each owns scratch for one segment
  size_t keys = 0, masks = 0, blocks = 0, scratch_keys = 0, scratch_masks = 0, end = 0;
};

inline constexpr size_t kWalkBudget = size_t{224} << 20;
inline constexpr int kMaxBuilders = 264;

// Rounds over `tiles` tiles that need `per_tile` bytes each, their parts from `offset` on.
inline WalkRound place_round(int64_t tiles, int64_t capacity, int64_t segment, int64_t per_tile,
                             size_t offset) {
  WalkRound round;
  const int64_t budget = static_cast<int64_t>(kWalkBudget);
  const int64_t most = std::max<int64_t>(1, budget / per_tile);
  const int64_t rounds = std::max<int64_t>(1, (tiles + most - 1) / most);
  round.capacity = static_cast<int>(capacity);
  round.segment = static_cast<int>(segment);
  round.tiles = static_cast<int>((tiles + rounds - 1) / rounds);
  round.builders = std::min(round.tiles, kMaxBuilders);
  const auto take = [&offset](int64_t bytes) {
    const size_t start = offset;
    offset += round_up(bytes, 256);
    return start;
  };
  round.keys = take(round.tiles * capacity * 4);
  round.masks = take(round.tiles * (capacity / kBlockKeys) * kMaskWords * 8);
  round.blocks = take(round.tiles * int64_t{4});
  round.scratch_keys = take(round.builders * segment * 4);
  round.scratch_masks = take(round.builders * segment * 8);
  round.end = offset;
  return round;
}

// What is noted of tiles: lists (how many, then which, in any order) and flags. All of it starts as zeros.
struct TileNotes {
  size_t overflow;  // [1 + tiles] int32
  size_t redo;      // [1 + tiles]
  size_t redone;    // [tiles]
  size_t taken;     // [1], a counter
  size_t bytes;
};

constexpr TileNotes place_notes(int64_t tiles) {
  const size_t list = size_t(tiles + 1) * 4;
  return {0, list, 2 * list, 3 * list - 4, 3 * list};
}

struct WalkWorkspace {
  TileNotes notes;
  WalkRound usual, long_walks;
  size_t bytes;
};

inline WalkWorkspace walk_workspace(int64_t tiles, int keys, int capacity, int tile_queries) {
  WalkWorkspace w{};
  w.notes = place_notes(tiles);
  const size_t start = round_up(static_cast<int64_t>(w.notes.bytes), 256);
  const auto walk_bytes = [](int64_t n) { return n * 4 + n / kBlockKeys * kMaskWords * 8 + 4; };
  const int64_t usual = walk_capacity(keys, capacity, tile_queries);
  w.usual = place_round(tiles, usual, usual, walk_bytes(usual), start);
  const int64_t all = distinct_keys(keys, capacity, tile_queries);
  if (all > usual) {
    // Scratch for every tile of a round: a builder with two walks to build would keep all others waiting.
    const int64_t longest = long_walk_capacity(keys, capacity, tile_queries);
    const int64_t segment = std::min<int64_t>(round_up(all, kBlockKeys), kLongSegment + kWalkRange);
    w.long_walks = place_round(tiles, longest, segment, walk_bytes(longest) + segment * 12, start);
  }
  w.bytes = std::max(w.usual.end, w.long_walks.end);
  return w;
}

}  // namespace gsa::sparse_attention
