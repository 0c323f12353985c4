// Sizes and heuristics of the fused index_select: pure functions, shared by host, device and tests.
#pragma once

#include <algorithm>
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

constexpr int kTileQueries = 32;     // of a warpgroup
constexpr int kBlockKeys = 64;       // keys of one block of the key stream
constexpr int kSampleStride = 32;    // the sample takes every 32nd key
constexpr int kLanesPerRow = 4;      // threads that share a query's scores
constexpr int kStaged = 44;          // survivors a lane gathers before its warp stores them
constexpr int kStagedStep = 33 * 8;  // bytes from one of them to the next; a lane's lie in different banks
constexpr int kBins = 256;           // of a row's histogram of survivors
constexpr int kHeaderBytes = 1024;   // of the workspace: work counter and flags

// Rank in a sample that is, but for about one row in thirty thousand, below the need-th best of the row,
// where `expected` of the sample's scores are among those, with this variance.
GSA_HOST_DEVICE inline float safe_rank(float expected, float variance) {
  return expected + 4.0f * sqrtf(variance) + 4.0f;
}

// Entries of a long row that pass a gate from the sample, but for one row in a thousand.
GSA_HOST_DEVICE inline int sampled_entries(int64_t need) {
  const float expected = static_cast<float>(need) / kSampleStride, rank = safe_rank(expected, expected);
  return static_cast<int>(kSampleStride * (rank + 3.0f * sqrtf(rank)));
}

// Survivors that a row's list can hold: twice the largest budget, so that a full list means that trimming to
// the budget frees at least half of it; what a sampled gate lets pass, which is more for small budgets; all
// keys of a tile that lies too early for a sample; and room for what its lanes stage.
GSA_HOST_DEVICE inline int64_t row_capacity(int k_max, int64_t keys) {
  const int64_t need = k_max < keys ? k_max : keys, staged = int64_t{kLanesPerRow} * kStaged;
  const int64_t early = kBlockKeys * kSampleStride + kTileQueries;
  int64_t most = 2 * need + staged;
  if (most < sampled_entries(need)) most = sampled_entries(need);
  if (most < early) most = keys < early ? (most < keys ? keys : most) : early;
  return (most + staged + 15) / 16 * 16;
}

// A list with more entries is trimmed, so that it has room for what its lanes may have staged.
GSA_HOST_DEVICE constexpr int full_list(int row_capacity) {
  return row_capacity - kLanesPerRow * kStaged;
}

// Strided sample blocks that all lie before `first_position`, the first query of a tile; none while the lists
// hold every key of the tile anyway.
GSA_HOST_DEVICE constexpr int sample_blocks(int64_t first_position, int row_capacity) {
  if (first_position + kTileQueries <= full_list(row_capacity)) return 0;
  return static_cast<int>(first_position / (int64_t{kBlockKeys} * kSampleStride));
}

// Where a sample block starts within its strides: different from block to block, so that keys with a period
// that divides the stride's multiples do not fool the sample.
GSA_HOST_DEVICE constexpr int sample_phase(int block) {
  return (11 + 13 * block) % kSampleStride;
}

// That rank in a sample of `samples` scores for the need-th best of `valid` scores. More than `samples` when
// the sample cannot tell.
GSA_HOST_DEVICE inline int sample_rank(int samples, int need, int64_t valid) {
  const float share = static_cast<float>(need) / static_cast<float>(valid);
  const float rank = safe_rank(samples * share, samples * share * (1.0f - share));
  return rank < samples ? static_cast<int>(rank) : samples + 1;
}

// Warpgroups of a block, each with a tile and a ring of keys of its own. 8 heads leave registers for two of
// them, keys of 128 dimensions shared memory.
GSA_HOST_DEVICE constexpr int consumer_warpgroups(int heads, int dim) {
  return heads == 8 || dim == 128 ? 2 : 3;
}
GSA_HOST_DEVICE constexpr int block_queries(int heads, int dim) {
  return kTileQueries * consumer_warpgroups(heads, dim);
}

// Tiles of queries, over the batch.
inline int64_t work_count(const IndexSelectParams& p) {
  return (p.queries + kTileQueries - 1) / kTileQueries * p.batch;
}

// Thread blocks: one for every multiprocessor while there are tiles. A few tiles go to one warpgroup of each.
inline int block_count(const IndexSelectParams& p, int multiprocessors) {
  const int64_t works = work_count(p);
  return static_cast<int>(works < multiprocessors ? works : multiprocessors);
}

// Warpgroup g of block b begins with tile g * blocks + b, and keeps its lists at that place: of the first
// tiles every block gets as many, and lists are there for those only.
inline int64_t tiles_at_once(const IndexSelectParams& p, int multiprocessors) {
  const int64_t works = work_count(p),
                most = int64_t{block_count(p, multiprocessors)} * consumer_warpgroups(p.heads, p.dim);
  return works < most ? works : most;
}

// Bytes of workspace, with rows of their own for every query.
inline size_t workspace_bytes(const IndexSelectParams& params, int multiprocessors) {
  const size_t rows = tiles_at_once(params, multiprocessors) * kTileQueries;
  return kHeaderBytes + rows * row_capacity(params.k_max, params.keys) * 8;
}

// ---- shared rows: one row for query_tile queries

constexpr int kMergeThreads = 512;
constexpr int kMergeStep = 4 * kMergeThreads;  // positions that a block collects at a time

// What the streaming kernel leaves of a query whose list another kernel finishes.
struct KeptRow {
  int32_t count;   // entries of the list
  int32_t wanted;  // of them; with shared rows the query's budget
  float low;       // of the scale of the row's histogram
  float per_bin;
  float threshold;  // with shared rows: the score, less the row's shift, of its k_t-th best candidate
};

GSA_HOST_DEVICE inline int64_t rows_of(const IndexSelectParams& p) {
  return (p.queries + p.query_tile - 1) / p.query_tile;
}

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

// How many it hands over at first: its k_max best, so all of positive margin. That is enough where these fill
// the row, as they do unless the tile's queries agree nearly completely or nearly all candidates are needed.
GSA_HOST_DEVICE inline int shared_first_need(const IndexSelectParams& p, int start) {
  const int need = shared_need(p, start), candidates = start - shared_kept(p, start);
  return candidates > need + need / 4 && p.k_max < need ? p.k_max : need;
}

// The most entries of a row that may be needed.
inline int list_need(const IndexSelectParams& p) {
  return p.query_tile == 1 ? p.k_max : shared_keys(p.tile_factor, p.k_max);
}

// The most entries of a list: eight of them, a warp's, are addressed by 26 bits.
constexpr int kMaxList = 1 << 23;

// Entries of a list. Those of shared rows are cut for what is needed at first; what is needed seldom has to
// fit, with room for trimming it twice a flush.
inline int64_t list_capacity(const IndexSelectParams& p) {
  const int64_t first = row_capacity(p.k_max, p.keys);
  if (p.query_tile == 1) return first;
  const int64_t most = list_need(p) < p.keys ? list_need(p) : p.keys;
  const int64_t all = (most + int64_t{4} * kLanesPerRow * kStaged + 15) / 16 * 16;
  return first > all ? first : all;
}

// Keys of a row of stored scores: their bits fit shared memory.
constexpr int64_t kMostStored = 1 << 20;

struct SelectLimits {
  size_t workspace = size_t{640} << 20;  // bytes, roughly, of scores or lists: 16K lists at k 2048
  int window = 48 << 10;                 // positions that a merging block holds at a time
  // All scores are stored where there are so few keys that lists would be as long, or so few queries, over
  // the batch, that most multiprocessors would have no tile to score.
  int64_t stored_keys = 15000;
  int64_t coded_keys = 32768;  // the same for scores in 16 bits
  int64_t stored_queries = 2048;
  int64_t stored_shared_keys = 20000;  // the same for shared rows
  int64_t stored_shared_queries = 1536;
  // Rows of their own of so many keys are finished by another kernel. That is worth it where many tiles
  // finish at once, and where their lists fit the workspace in a few chunks: the ends of chunks cost
  // more.
  int64_t most_keys = 40000;
};

// Whether stored scores take 16 bits (index_select_code.h) or 32: activations have an end, and no margins are
// made of them.
inline bool stores_codes(const IndexSelectParams& p) {
  return p.activation != IndexActivation::kRelu && p.query_tile == 1;
}

// What the kernel that scores leaves.
inline SelectLeaves select_leaves(const IndexSelectParams& p, const SelectLimits& limits) {
  const bool softmax = p.budget == SelectBudget::kEntropy || p.budget == SelectBudget::kMaxScore;
  const bool shared = p.query_tile > 1;
  const int64_t queries = shared ? limits.stored_shared_queries : limits.stored_queries;
  const int64_t keys = shared            ? limits.stored_shared_keys
                       : stores_codes(p) ? limits.coded_keys
                                         : limits.stored_keys;
  const bool few = p.keys <= keys || p.batch * p.queries <= queries;
  if (few && p.keys <= kMostStored && !softmax) return SelectLeaves::kScores;
  return shared || p.keys <= limits.most_keys ? SelectLeaves::kLists : SelectLeaves::kRows;
}

// A call may go through its queries in chunks, whose scores or lists lie in the workspace together.
struct Chunks {
  int64_t batch;    // of a chunk: several sequences,
  int64_t queries;  // or a part of one
  int64_t of_sequence;
  int64_t count;
};

inline Chunks make_chunks(const IndexSelectParams& p, int64_t batch, int64_t queries) {
  batch = std::clamp<int64_t>(batch, 1, p.batch);
  queries = std::clamp<int64_t>(queries, 1, p.queries);
  const int64_t of_sequence = (p.queries + queries - 1) / queries;
  return {batch, queries, of_sequence, of_sequence * ((p.batch + batch - 1) / batch)};
}

// A chunk as a problem of its own: queries end where the chunk does, and keys with its last query. What does
// not fill a chunk comes first, where there are the fewest keys.
inline IndexSelectParams chunk_of(const IndexSelectParams& p, const Chunks& chunks, int64_t number) {
  const int64_t b = number / chunks.of_sequence * chunks.batch, part = number % chunks.of_sequence;
  const int64_t rows = rows_of(p), chunk_rows = (chunks.queries + p.query_tile - 1) / p.query_tile;
  const int64_t first_row = std::max<int64_t>(0, rows - (chunks.of_sequence - part) * chunk_rows);
  const int64_t end_row = rows - (chunks.of_sequence - 1 - part) * chunk_rows;
  const int64_t q = first_row * p.query_tile;
  IndexSelectParams chunk = p;
  chunk.batch = std::min(p.batch - b, chunks.batch);
  chunk.queries = std::min(end_row * p.query_tile, p.queries) - q;
  chunk.keys = p.keys - p.queries + q + chunk.queries;
  const int64_t token = b * p.queries + q, row = b * rows + first_row;
  chunk.index_query = static_cast<const char*>(p.index_query) + token * p.heads * p.dim * 2;
  chunk.index_key = static_cast<const char*>(p.index_key) + b * p.keys * p.dim * 2;
  chunk.head_weight = p.head_weight + token * p.heads;
  chunk.statistic = p.statistic + token;
  chunk.indices = p.indices + row * p.capacity;
  chunk.counts = p.counts + row;
  return chunk;
}

struct ListPlan {
  Chunks chunks;
  int merged;  // entries of a tile's merged list
  int window;  // positions that a merging block holds at a time
};

// The workspace of a problem whose lists are kept: header, lists, KeptRows, merged lists of shared rows.
struct ListSpace {
  int64_t padded;  // rows of lists of one sequence: whole tiles of the streaming kernel
  int row_limit;   // entries of a list
  size_t rows_at;  // bytes from the start
  size_t merged_at;
  size_t again_at;
  size_t bytes;
};

inline ListSpace list_space(const IndexSelectParams& p, int merged) {
  ListSpace space{};
  space.padded = (p.queries + kTileQueries - 1) / kTileQueries * kTileQueries;
  space.row_limit = static_cast<int>(list_capacity(p));
  const size_t rows = p.batch * space.padded;
  space.rows_at = kHeaderBytes + rows * space.row_limit * 8;
  space.merged_at = space.rows_at + rows * sizeof(KeptRow);
  const size_t results = p.batch * rows_of(p);
  space.again_at = space.merged_at + results * merged * sizeof(int64_t);
  space.bytes = space.again_at + results * sizeof(int32_t);
  return space;
}

// Chunks as large as the limit allows; from one tile for every multiprocessor on, so many for each.
inline ListPlan plan_lists(const IndexSelectParams& p, int multiprocessors, const SelectLimits& limits = {}) {
  ListPlan plan{};
  const int64_t most = list_need(p) < p.keys ? list_need(p) : p.keys;
  plan.merged = p.query_tile > 1 ? static_cast<int>(2 * most + kMergeStep) : 0;
  const int64_t window = (p.keys + kMergeStep - 1) / kMergeStep * kMergeStep;
  plan.window = static_cast<int>(window < limits.window ? window : limits.window);
  const int64_t tile = block_queries(p.heads, p.dim);
  const int64_t list_bytes = list_capacity(p) * 8;
  const int64_t row_bytes = list_bytes + sizeof(KeptRow) + int64_t{plan.merged} * 8 / p.query_tile;
  int64_t tiles = static_cast<int64_t>(limits.workspace) / (row_bytes * tile);
  const int64_t of_sequence = (p.queries + tile - 1) / tile;
  if (tiles < of_sequence && tiles > multiprocessors) tiles -= tiles % multiprocessors;
  const int64_t rows = std::max<int64_t>(1, tiles * tile / p.query_tile);
  plan.chunks = tiles >= of_sequence ? make_chunks(p, tiles / of_sequence, p.queries)
                                     : make_chunks(p, 1, rows * p.query_tile);
  return plan;
}

inline size_t list_workspace_bytes(const IndexSelectParams& p, const ListPlan& plan) {
  IndexSelectParams largest = p;
  largest.batch = plan.chunks.batch;
  largest.queries = plan.chunks.queries;  // with all keys: the last chunk, and no other needs more
  return list_space(largest, plan.merged).bytes;
}

}  // namespace gsa::fused_select
