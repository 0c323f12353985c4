// Where all scores are stored, because rows are short or few: their place in the workspace and how their
// computation is dealt out. Pure functions, shared by host, device and tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa::fused_select {

inline int64_t score_bytes(const IndexSelectParams& p) {
  return stores_codes(p) ? sizeof(uint16_t) : sizeof(float);
}

// Scores lie tile by tile, in tiles of kTileQueries queries. A tile's rows have room for the blocks of keys
// that any of its queries may see, so that a triangle of scores takes half of a square.
struct StoredScores {
  int64_t batch;
  int64_t tiles;   // of a sequence
  int64_t offset;  // blocks(tile) = (tile + offset) / 2

  // Blocks of keys that tile number `tile` of a sequence may see.
  GSA_HOST_DEVICE int64_t blocks(int64_t tile) const { return (tile + offset) / 2; }
  // The same for all tiles before it: a sum of halves, rounded down.
  GSA_HOST_DEVICE int64_t blocks_before(int64_t tile) const { return halves(tile + offset) - halves(offset); }
  GSA_HOST_DEVICE int64_t all_blocks() const { return batch * blocks_before(tiles); }

  // The same as work to be dealt out: a tile's start, when its queries are loaded, is worth kStart blocks.
  static constexpr int64_t kStart = 2;
  GSA_HOST_DEVICE int64_t work(int64_t tile) const { return blocks(tile) + kStart; }
  GSA_HOST_DEVICE int64_t work_before(int64_t tile) const { return blocks_before(tile) + kStart * tile; }
  GSA_HOST_DEVICE int64_t all_work() const { return batch * work_before(tiles); }

  // Entries of a row of the tile.
  GSA_HOST_DEVICE int64_t pitch(int64_t tile) const { return blocks(tile) * kBlockKeys; }
  // Where a tile's first row begins, in entries.
  GSA_HOST_DEVICE int64_t first_entry(int64_t sequence, int64_t tile) const {
    return (sequence * blocks_before(tiles) + blocks_before(tile)) * kBlockKeys * kTileQueries;
  }

 private:
  // In 32 bits: n is a sequence's tiles and offset, half of each kMostStored / kTileQueries at most.
  static GSA_HOST_DEVICE int64_t halves(int64_t n) {
    const auto before = static_cast<uint32_t>(n - 1);
    return before * before / 4;
  }
};

inline StoredScores stored_scores(const IndexSelectParams& p) {
  return {p.batch, (p.queries + kTileQueries - 1) / kTileQueries,
          (p.keys - p.queries + kTileQueries + kBlockKeys - 1) / kTileQueries};
}

// The work of all tiles, one tile after the other, is dealt to warpgroups in equal shares.
struct TileWork {
  int64_t sequence;
  int64_t tile;
  int64_t done;  // of the tile's work

  // The first block that is not done.
  GSA_HOST_DEVICE int64_t block() const {
    return done > StoredScores::kStart ? done - StoredScores::kStart : 0;
  }
};

// Where piece number 0 <= number < all_work lies.
GSA_HOST_DEVICE inline TileWork find_work(const StoredScores& stored, int64_t number) {
  const int64_t of_sequence = stored.work_before(stored.tiles);
  const int64_t sequence = number / of_sequence, rest = number % of_sequence;
  int64_t tile = 0, end = stored.tiles;  // the last tile that does not begin behind it
  while (end - tile > 1) {
    const int64_t middle = (tile + end) / 2;
    if (stored.work_before(middle) <= rest)
      tile = middle;
    else
      end = middle;
  }
  return {sequence, tile, rest - stored.work_before(tile)};
}

// Blocks of a tile that lie side by side.
struct BlockRun {
  int64_t sequence;
  int64_t tile;
  int64_t first;
  int count;
};

// Calls visit(run) for the blocks of `count` pieces of work from number `first` on, tile by tile.
template <class Visit>
GSA_HOST_DEVICE inline void for_each_run(const StoredScores& stored, int64_t first, int64_t count,
                                         Visit visit) {
  if (count == 0) return;
  TileWork at = find_work(stored, first);
  while (count > 0) {
    const int64_t left = stored.work(at.tile) - at.done, taken = count < left ? count : left;
    const int64_t block = at.block();
    at.done += taken;
    if (at.block() > block)
      visit(BlockRun{at.sequence, at.tile, block, static_cast<int>(at.block() - block)});
    count -= taken;
    at.done = 0;
    if (++at.tile < stored.tiles) continue;
    at.tile = 0;
    ++at.sequence;
  }
}

// What a query of a shared row wants: its budget, and the score of its last candidate within it.
struct QueryWant {
  int budget;
  float threshold;
};

// Entries of a row of margins.
GSA_HOST_DEVICE inline int64_t margin_pitch(const IndexSelectParams& p) {
  constexpr int64_t kStep = int64_t{2} * kBlockKeys;
  return (p.keys + kStep - 1) / kStep * kStep;
}

// The workspace: header, scores, and for shared rows what queries want and the tiles' margins.
struct StoredSpace {
  size_t wanted_at;  // bytes from the start
  size_t margins_at;
  size_t bytes;

  GSA_HOST_DEVICE QueryWant* wanted(const IndexSelectParams& p) const {
    return reinterpret_cast<QueryWant*>(static_cast<char*>(p.workspace) + wanted_at);
  }
  GSA_HOST_DEVICE float* margins(const IndexSelectParams& p) const {
    return reinterpret_cast<float*>(static_cast<char*>(p.workspace) + margins_at);
  }
};

// Rows are read in steps of two blocks: there is one behind the last row.
inline StoredSpace stored_space(const IndexSelectParams& p) {
  StoredSpace space{};
  const int64_t blocks = stored_scores(p).all_blocks() * kTileQueries + 1;
  space.wanted_at = space.margins_at = space.bytes = kHeaderBytes + blocks * kBlockKeys * score_bytes(p);
  if (p.query_tile == 1) return space;
  space.margins_at += (p.batch * p.queries * sizeof(QueryWant) + 15) / 16 * 16;
  space.bytes = space.margins_at + p.batch * rows_of(p) * margin_pitch(p) * sizeof(float);
  return space;
}

// The most codes of a thread, so that sums over a warp's low bytes fit: 32 * 2048 * 255 * 255 < 2^32.
constexpr int64_t kMostCodes = 2048;

// Threads for a row. What a row costs besides its scores is paid by every warp, so few, as long as they have
// some scores each, there are rows enough for all multiprocessors, and the scores under way, which are read
// twice, stay in the second-level cache.
inline int row_threads(const IndexSelectParams& p, int multiprocessors) {
  const int64_t rows = p.batch * p.queries / multiprocessors;
  if (p.keys <= 4096 || (rows >= 24 && p.keys <= (stores_codes(p) ? 25000 : 10000))) return 64;
  if (rows >= 24 && p.keys <= kMostCodes * 128) return 128;
  return rows >= 3 && p.keys <= kMostCodes * 256 ? 256 : 512;
}

// Chunks as large as the limit allows: whole sequences, or whole rows of one.
inline Chunks plan_scores(const IndexSelectParams& p, const SelectLimits& limits) {
  IndexSelectParams part = p;
  part.batch = 1;
  const size_t bytes = stored_space(part).bytes;
  if (bytes <= limits.workspace) return make_chunks(p, limits.workspace / bytes, p.queries);
  int64_t least = 1, most = rows_of(p);  // rows of a chunk: `least` fit, or are the least; `most` do not
  while (most - least > 1) {
    part.queries = (least + most) / 2 * p.query_tile;
    (stored_space(part).bytes <= limits.workspace ? least : most) = (least + most) / 2;
  }
  return make_chunks(p, 1, least * p.query_tile);
}

// What every chunk finds room in: a whole one that begins where the last one does, and that may end at a last
// tile that is not whole.
inline size_t stored_workspace_bytes(const IndexSelectParams& p, const Chunks& chunks) {
  const int64_t rows = (chunks.queries + p.query_tile - 1) / p.query_tile;
  IndexSelectParams largest = p;
  largest.batch = chunks.batch;
  largest.queries = chunks.queries;
  largest.keys = p.keys - p.queries + std::max<int64_t>(0, rows_of(p) - rows) * p.query_tile + chunks.queries;
  return stored_space(largest).bytes;
}

}  // namespace gsa::fused_select
