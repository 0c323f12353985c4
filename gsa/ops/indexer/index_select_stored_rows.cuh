// Rows from stored scores: the kernels behind the one that scores (docs/kernels/index_select.md, "Stored
// scores"). For rows of their own a block a query; for shared rows each query's threshold, the
// largest margin of every position, and the tile's row from these.
#pragma once

#include "gsa/cuda/grid.h"
#include "gsa/cuda/launch.h"
#include "gsa/ops/indexer/index_select_budget.h"
#include "gsa/ops/indexer/index_select_coded_ties.h"
#include "gsa/ops/indexer/index_select_stored_plan.h"
#include "gsa/ops/indexer/index_select_stored_row.h"

namespace gsa::fused_select {

constexpr int kMarginThreads = 256;
constexpr int kMarginStep = 4 * kMarginThreads;  // positions of a block that looks for margins

// What a row takes besides: a bit a position.
template <class Scratch>
int row_bytes(const IndexSelectParams& p) {
  return static_cast<int>(sizeof(Scratch) + (margin_pitch(p) + 7) / 8);
}

// The scores of a query, or their codes.
template <class Score>
__device__ __forceinline__ Score* row_of(const IndexSelectParams& p, const StoredScores& stored,
                                         int64_t sequence, int query) {
  const int tile = query / kTileQueries;
  return reinterpret_cast<Score*>(static_cast<uint8_t*>(p.workspace) + kHeaderBytes) +
         stored.first_entry(sequence, tile) + query % kTileQueries * stored.pitch(tile);
}

// Writes the row with its best `need` candidates. Returns how many positions it has.
template <int kThreads, class Row>
__device__ __forceinline__ int write_row(Row& row, int need, int32_t* out, int capacity) {
  const bool all = row.takes_all(need);
  if (!all) {
    row.choose(need);
    __syncthreads();
  }
  return PositionWriter<kThreads>{row.words, row.scratch.gathered, row.scratch.scan, row.length, row.first,
                                  row.recent}
      .write(out, capacity, all);
}

struct RowNumber {
  unsigned sequence;
  int query;
};

// The last queries, whose rows are the longest, first.
__device__ __forceinline__ RowNumber row_number(const IndexSelectParams& p) {
  unsigned sequence = 0, back = blockIdx.x;
  if (p.batch > 1) {
    sequence = blockIdx.x % static_cast<unsigned>(p.batch);
    back = blockIdx.x / static_cast<unsigned>(p.batch);
  }
  return {sequence, static_cast<int>(p.queries - 1 - back)};
}

// A block a query. With kShared it leaves the query's budget and threshold for the rows of tiles.
template <int kThreads, bool kShared>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    stored_row_kernel(const __grid_constant__ IndexSelectParams p,
                      const __grid_constant__ StoredScores stored,
                      const __grid_constant__ StoredSpace space) {
  StoredRowScratch<kThreads>& scratch = cuda::shared_memory<StoredRowScratch<kThreads>>();
  const RowNumber number = row_number(p);
  const unsigned sequence = number.sequence;
  const int query = number.query;
  const int position = static_cast<int>(query + p.keys - p.queries);
  const int64_t token = sequence * p.queries + query;
  const int end = kShared ? position - query % p.query_tile : position + 1;  // candidates lie before
  const int first = min(p.keep_first, end);
  StoredRow<kThreads> row{row_of<float>(p, stored, sequence, query),
                          reinterpret_cast<uint32_t*>(&scratch + 1),
                          scratch,
                          position + 1,
                          first,
                          max(first, end - p.keep_recent)};
  cuda::wait_previous_kernel();
  row.sample();
  row.count();
  const float statistic = find_statistic(p, row.variance, position);
  const int budget = find_budget(p, statistic, position);
  if (threadIdx.x == 0) p.statistic[token] = statistic;
  if constexpr (kShared) {
    const float threshold = row.kth_best(budget);
    if (threadIdx.x == 0) space.wanted(p)[token] = QueryWant{budget, threshold};
  } else {
    const int written = write_row<kThreads>(row, budget - min(p.keep_first + p.keep_recent, position + 1),
                                            p.indices + token * p.capacity, p.capacity);
    if (threadIdx.x == 0) p.counts[token] = written;
  }
}

// The same from codes.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, (kThreads == 64 ? 1024 : 1280) / kThreads)
    coded_row_kernel(const __grid_constant__ IndexSelectParams p,
                     const __grid_constant__ StoredScores stored) {
  CodedRowScratch<kThreads>& scratch = cuda::shared_memory<CodedRowScratch<kThreads>>();
  const RowNumber number = row_number(p);
  const unsigned sequence = number.sequence;
  const int query = number.query;
  const int position = static_cast<int>(query + p.keys - p.queries), end = position + 1;
  const int64_t token = sequence * p.queries + query;
  const int first = min(p.keep_first, end);
  CodedRow<kThreads> row{row_of<uint16_t>(p, stored, sequence, query),
                         reinterpret_cast<uint32_t*>(&scratch + 1),
                         scratch,
                         p,
                         sequence,
                         token,
                         end,
                         first,
                         max(first, end - p.keep_recent)};
  row.clear();
  cuda::wait_previous_kernel();
  row.count();
  const float statistic = find_statistic(p, row.variance, position);
  const int budget = find_budget(p, statistic, position);
  const int written = write_row<kThreads>(row, budget - min(p.keep_first + p.keep_recent, end),
                                          p.indices + token * p.capacity, p.capacity);
  if (threadIdx.x == 0) {
    p.statistic[token] = statistic;
    p.counts[token] = written;
  }
}

// The largest margin over a tile's queries of the positions before it, a block kMarginStep of them; zeros
// behind. Not NaN, which infinite scores leave.
static __global__ void __launch_bounds__(kMarginThreads)
    margin_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ StoredScores stored,
                  const __grid_constant__ StoredSpace space, int steps) {
  float* thresholds = &cuda::shared_memory<float>();
  const auto row = static_cast<int64_t>(blockIdx.x / steps);
  const int64_t sequence = row / rows_of(p);
  const int first_query = static_cast<int>(row % rows_of(p)) * p.query_tile;
  const int queries = min(p.query_tile, static_cast<int>(p.queries) - first_query);
  const int start = static_cast<int>(first_query + p.keys - p.queries);
  const int begin = static_cast<int>(blockIdx.x % steps) * kMarginStep;
  if (begin >= start + queries) return;
  for (int i = static_cast<int>(threadIdx.x); i < queries; i += kMarginThreads)
    thresholds[i] = space.wanted(p)[sequence * p.queries + first_query + i].threshold;
  __syncthreads();
  const int position = begin + 4 * static_cast<int>(threadIdx.x);
  if (position >= start + queries) return;
  float4 best{-kInfinity, -kInfinity, -kInfinity, -kInfinity};
#pragma unroll 8
  for (int i = 0; i < (position < start ? queries : 0); ++i) {
    const float threshold = thresholds[i];
    const float4 s =
        *reinterpret_cast<const float4*>(row_of<float>(p, stored, sequence, first_query + i) + position);
    best = {fmaxf(best.x, s.x - threshold), fmaxf(best.y, s.y - threshold), fmaxf(best.z, s.z - threshold),
            fmaxf(best.w, s.w - threshold)};
  }
  const int behind = start - position;
  if (behind < 4) {
    best.w = 0;
    if (behind < 3) best.z = 0;
    if (behind < 2) best.y = 0;
    if (behind < 1) best.x = 0;
  }
  *reinterpret_cast<float4*>(space.margins(p) + row * margin_pitch(p) + position) = best;
}

// A block a tile.
template <int kThreads>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    tile_row_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ StoredSpace space) {
  StoredRowScratch<kThreads>& scratch = cuda::shared_memory<StoredRowScratch<kThreads>>();
  const int64_t number = blockIdx.x, sequence = number / rows_of(p);
  const int first_query = static_cast<int>(number % rows_of(p)) * p.query_tile;
  const int queries = min(p.query_tile, static_cast<int>(p.queries) - first_query);
  const int start = static_cast<int>(first_query + p.keys - p.queries), first = min(p.keep_first, start);
  StoredRow<kThreads> row{space.margins(p) + number * margin_pitch(p),
                          reinterpret_cast<uint32_t*>(&scratch + 1),
                          scratch,
                          start + queries,
                          first,
                          max(first, start - p.keep_recent)};
  cuda::wait_previous_kernel();
  int budget = 0;
  for (int i = 0; i < queries; ++i)
    budget = max(budget, space.wanted(p)[sequence * p.queries + first_query + i].budget);
  row.sample();
  row.count();
  const int written = write_row<kThreads>(row, shared_keys(p.tile_factor, budget) - shared_kept(p, start),
                                          p.indices + number * p.capacity, p.capacity);
  if (threadIdx.x == 0) p.counts[number] = written;
}

}  // namespace gsa::fused_select
