// Sizes and heuristics of the fused index_select: pure functions, shared by host, device and tests.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "gsa/ops/indexer/index_select_params.h"

#ifdef __CUDACC__
#define GSA_HOST_DEVICE __host__ __device__
#else
#define GSA_HOST_DEVICE
#endif

namespace gsa::fused_select {

constexpr int kBlockKeys = 64;      // keys of one block of the key stream
constexpr int kSampleStride = 32;   // the sample takes every 32nd key
constexpr int kLanesPerRow = 4;     // threads that share a query's scores, each with a list of its own
constexpr int kStaged = 32;         // survivors a lane gathers before it stores them
constexpr int kBins = 128;          // of a row's histogram of survivors
constexpr int kHeaderBytes = 1024;  // of the workspace: work counter and flags

// Survivors a lane can hold. A row's lists together hold twice the largest budget, so that a full list means
// that trimming to the budget frees at least half of the row; every lane has room for what one block may add.
GSA_HOST_DEVICE constexpr int lane_capacity(int k_max, int64_t keys) {
  const int64_t need = k_max < keys ? k_max : keys;
  const int64_t lane = 2 * need / kLanesPerRow + 64;
  return static_cast<int>((lane + 15) / 16 * 16);
}

// Strided sample blocks that all lie before `first_position`, the first query of a tile; none while the lists
// hold every key anyway.
GSA_HOST_DEVICE constexpr int sample_blocks(int64_t first_position, int lane_capacity) {
  if (first_position < int64_t{kLanesPerRow} * lane_capacity) return 0;
  return static_cast<int>(first_position / (kBlockKeys * kSampleStride));
}

// Where a sample block starts within its strides: different from block to block, so that keys with a period
// that divides the stride's multiples do not fool the sample.
GSA_HOST_DEVICE constexpr int sample_phase(int block) {
  return (11 + 13 * block) % kSampleStride;
}

// Rank in a sample of `samples` scores whose value is, but for about one row in thirty thousand, below the
// need-th best of `valid` scores. More than `samples` when the sample cannot tell.
GSA_HOST_DEVICE inline int sample_rank(int samples, int need, int64_t valid) {
  const float share = static_cast<float>(need) / static_cast<float>(valid);
  const float spread = sqrtf(samples * share * (1.0f - share));
  const float rank = samples * share + 4.0f * spread + 4.0f;
  return rank < samples ? static_cast<int>(rank) : samples + 1;
}

// Queries of one block's tile: warpgroups of 32 queries; 8 heads leave registers for two of them.
GSA_HOST_DEVICE constexpr int consumer_warpgroups(int heads, int dim) {
  return heads == 8 || (heads == 4 && dim == 128) ? 2 : 3;
}
GSA_HOST_DEVICE constexpr int tile_queries(int heads, int dim) {
  return 32 * consumer_warpgroups(heads, dim);
}

// Bytes of workspace for a grid of `blocks` thread blocks.
inline size_t workspace_bytes(const IndexSelectParams& params, int blocks) {
  const size_t rows = static_cast<size_t>(blocks) * tile_queries(params.heads, params.dim);
  return kHeaderBytes + rows * kLanesPerRow * lane_capacity(params.k_max, params.keys) * 8;
}

// ---- shared rows: one row for query_tile queries

constexpr int kMergeThreads = 512;
constexpr int kMergeStep = 4 * kMergeThreads;  // positions that a block collects at a time

// What the kernel that streams the keys leaves of a query, besides its lists.
struct SharedRow {
  int32_t counts[kLanesPerRow];  // entries of its lists
  float threshold;               // the score, less the row's shift, of its k_t-th best candidate
  int32_t budget;                // k_t
  int32_t unused[2];
};

// Keys before the tile that a row holds whose largest budget is k, kept ones included.
GSA_HOST_DEVICE inline int shared_keys(double tile_factor, int k) {
  return static_cast<int>(rint(tile_factor * k));
}

// Positions before a tile's start that are chosen anyway.
GSA_HOST_DEVICE inline int shared_kept(const IndexSelectParams& p, int start) {
  const int kept = p.keep_first + p.keep_recent;
  return kept < start ? kept : start;
}

// How many of its best candidates a query has to hand to the merge: whatever its own budget and the tile's
// largest turn out to be, its k_t-th best and the best that the row may want are among them. (A key outside
// those of the query it is best for is beaten there by as many keys with margins at least as large.)
GSA_HOST_DEVICE inline int shared_need(const IndexSelectParams& p, int start) {
  const int k = p.k_max < start + p.query_tile ? p.k_max : start + p.query_tile;
  const int kept = shared_kept(p, start), wanted = shared_keys(p.tile_factor, k) - kept;
  const int need = wanted > k ? wanted : k;
  return need < start - kept ? need : start - kept;
}

// The most entries of a row that may be needed.
inline int list_need(const IndexSelectParams& p) {
  return p.query_tile == 1 ? p.k_max : shared_keys(p.tile_factor, p.k_max);
}

struct SharedLimits {
  size_t workspace =
      size_t{512} << 20;  // bytes, roughly: 107 of 132 blocks busy at k 2048, all from 1600 down
  int window = 48 << 10;  // positions that a merging block holds at a time
};

// A call goes through its queries in chunks, whose lists lie in the workspace together.
struct SharedPlan {
  int64_t batch;    // of a chunk: several sequences,
  int64_t queries;  // or a part of one
  int64_t chunks_of_sequence;
  int64_t chunks;
  int merged;  // entries of a tile's merged list
  int window;  // positions that a merging block holds at a time
};

// The workspace of a problem with shared rows: header, lists, SharedRows, merged lists.
struct SharedSpace {
  int64_t padded;  // rows of lists of one sequence: whole tiles of the streaming kernel
  int lane_limit;  // entries of a list
  size_t rows_at;  // bytes from the start
  size_t merged_at;
};

inline SharedSpace shared_space(const IndexSelectParams& p) {
  SharedSpace space{};
  const int tile = tile_queries(p.heads, p.dim);
  space.padded = (p.queries + tile - 1) / tile * tile;
  space.lane_limit = lane_capacity(list_need(p), p.keys);
  const size_t rows = p.batch * space.padded;
  space.rows_at = kHeaderBytes + rows * space.lane_limit * kLanesPerRow * 8;
  space.merged_at = space.rows_at + rows * sizeof(SharedRow);
  return space;
}

// Chunks as large as the limit allows; from one tile for every multiprocessor on, so many for each.
inline SharedPlan plan_shared(const IndexSelectParams& p, int multiprocessors,
                              const SharedLimits& limits = {}) {
  SharedPlan plan{};
  const int64_t most = list_need(p) < p.keys ? list_need(p) : p.keys;
  plan.merged = static_cast<int>(2 * most + kMergeStep);
  const int64_t window = (p.keys + kMergeStep - 1) / kMergeStep * kMergeStep;
  plan.window = static_cast<int>(window < limits.window ? window : limits.window);
  const int64_t tile = tile_queries(p.heads, p.dim);
  const int64_t list_bytes = int64_t{lane_capacity(list_need(p), p.keys)} * kLanesPerRow * 8;
  const int64_t row_bytes = list_bytes + sizeof(SharedRow) + int64_t{plan.merged} * 8 / p.query_tile;
  int64_t tiles = static_cast<int64_t>(limits.workspace) / (row_bytes * tile);
  if (tiles > multiprocessors) tiles -= tiles % multiprocessors;
  const int64_t of_sequence = (p.queries + tile - 1) / tile;
  if (tiles >= of_sequence) {
    plan.batch = tiles / of_sequence < p.batch ? tiles / of_sequence : p.batch;
    plan.queries = p.queries;
  } else {
    plan.batch = 1;
    const int64_t rows = tiles * tile / p.query_tile;
    plan.queries = (rows > 1 ? rows : 1) * p.query_tile;
    if (plan.queries > p.queries) plan.queries = p.queries;
  }
  plan.chunks_of_sequence = (p.queries + plan.queries - 1) / plan.queries;
  plan.chunks = plan.chunks_of_sequence * ((p.batch + plan.batch - 1) / plan.batch);
  return plan;
}

// A chunk as a problem of its own: queries end where the chunk does, and keys with its last query.
inline IndexSelectParams shared_chunk(const IndexSelectParams& p, const SharedPlan& plan, int64_t number) {
  const int64_t b = number / plan.chunks_of_sequence * plan.batch;
  const int64_t q = number % plan.chunks_of_sequence * plan.queries;
  const int64_t rows = (p.queries + p.query_tile - 1) / p.query_tile;
  IndexSelectParams chunk = p;
  chunk.batch = p.batch - b < plan.batch ? p.batch - b : plan.batch;
  chunk.queries = p.queries - q < plan.queries ? p.queries - q : plan.queries;
  chunk.keys = p.keys - p.queries + q + chunk.queries;
  const int64_t token = b * p.queries + q, row = b * rows + q / p.query_tile;
  chunk.index_query = static_cast<const char*>(p.index_query) + token * p.heads * p.dim * 2;
  chunk.index_key = static_cast<const char*>(p.index_key) + b * p.keys * p.dim * 2;
  chunk.head_weight = p.head_weight + token * p.heads;
  chunk.statistic = p.statistic + token;
  chunk.indices = p.indices + row * p.capacity;
  chunk.counts = p.counts + row;
  return chunk;
}

inline size_t shared_workspace_bytes(const IndexSelectParams& p, const SharedPlan& plan) {
  IndexSelectParams largest = p;
  largest.batch = plan.batch;
  largest.queries = plan.queries;  // with all keys: the last chunk, and no other needs more
  const int64_t rows = (plan.queries + p.query_tile - 1) / p.query_tile;
  return shared_space(largest).merged_at + plan.batch * rows * plan.merged * sizeof(int64_t);
}

}  // namespace gsa::fused_select
