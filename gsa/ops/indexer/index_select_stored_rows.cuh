// Rows from stored scores: the kernels behind the one that scores (docs/kernels/index_select.md, "Stored
// scores"). For rows of their own a block a query; for shared rows each query's threshold, the
// largest margin of every position, and the tile's row from these.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/ops/indexer/index_select_budget.h"
#include "gsa/ops/indexer/index_select_stored_plan.h"
#include "gsa/ops/indexer/index_select_stored_row.h"

namespace gsa::fused_select {

constexpr int kMarginThreads = 256;
constexpr int kMarginStep = 4 * kMarginThreads;  // positions of a block that looks for margins

template <int kThreads>
int stored_row_bytes(const IndexSelectParams& p) {
  return static_cast<int>(sizeof(StoredRowScratch<kThreads>) + (margin_pitch(p) + 7) / 8);
}

// The scores of a query.
__device__ __forceinline__ const float* row_of(const IndexSelectParams& p, const StoredScores& stored,
                                               int64_t sequence, int query) {
  const int tile = query / kTileQueries;
  return reinterpret_cast<const float*>(static_cast<uint8_t*>(p.workspace) + kHeaderBytes) +
         stored.first_entry(sequence, tile) + query % kTileQueries * stored.pitch(tile);
}

// A block a query, the last queries, whose rows are the longest, first. With kShared it leaves the query's
// budget and threshold for the rows of tiles.
template <int kThreads, bool kShared>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    stored_row_kernel(const __grid_constant__ IndexSelectParams p,
                      const __grid_constant__ StoredScores stored,
                      const __grid_constant__ StoredSpace space) {
  StoredRowScratch<kThreads>& scratch = cuda::shared_memory<StoredRowScratch<kThreads>>();
  const auto batch = static_cast<unsigned>(p.batch), sequence = blockIdx.x % batch;
  const int query = static_cast<int>(p.queries) - 1 - static_cast<int>(blockIdx.x / batch);
  const int position = static_cast<int>(query + p.keys - p.queries);
  const int64_t token = sequence * p.queries + query;
  const int end = kShared ? position - query % p.query_tile : position + 1;  // candidates lie before
  const int first = min(p.keep_first, end);
  StoredRow<kThreads> row{row_of(p, stored, sequence, query),
                          reinterpret_cast<uint32_t*>(&scratch + 1),
                          scratch,
                          position + 1,
                          first,
                          max(first, end - p.keep_recent)};
  row.sample();
  row.count();
  const float statistic = find_statistic(p, row.variance, position);
  const int budget = find_budget(p, statistic, position);
  if (threadIdx.x == 0) p.statistic[token] = statistic;
  if constexpr (kShared) {
    const float threshold = row.kth_best(budget);
    if (threadIdx.x == 0) space.wanted(p)[token] = QueryWant{budget, threshold};
  } else {
    row.choose(budget - min(p.keep_first + p.keep_recent, position + 1));
    __syncthreads();
    const int written = row.write(p.indices + token * p.capacity, p.capacity);
    if (threadIdx.x == 0) p.counts[token] = written;
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
        *reinterpret_cast<const float4*>(row_of(p, stored, sequence, first_query + i) + position);
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
  int budget = 0;
  for (int i = 0; i < queries; ++i)
    budget = max(budget, space.wanted(p)[sequence * p.queries + first_query + i].budget);
  row.sample();
  row.count();
  row.choose(shared_keys(p.tile_factor, budget) - shared_kept(p, start));
  __syncthreads();
  const int written = row.write(p.indices + number * p.capacity, p.capacity);
  if (threadIdx.x == 0) p.counts[number] = written;
}

}  // namespace gsa::fused_select
