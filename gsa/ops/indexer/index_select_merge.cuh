// The rows of tiles of queries from the queries' lists: one block a tile (docs/kernels/index_select.md,
// "Shared rows").
//
// A key's worth is the largest margin, score less the query's threshold, over the lists that hold it. The
// block takes the positions window by window: an array in shared memory collects each position's largest
// margin from all lists of the tile, what lies above the gate is appended to the tile's merged list, in
// ascending order. When that is full it is cut to the exact best so far, which raises the gate to the last of
// them: later positions would lose the tie.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_block.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_plan.h"
#include "gsa/ops/indexer/index_select_row.h"

namespace gsa::fused_select {

constexpr int kMergeQueries = 256;

struct MergeScratch {
  BlockScratch<kMergeThreads, 2048> block;
  int cursors[kMergeQueries];  // where in the queries' lists the next window begins
};

// Shared memory of a merging block: the scratch, then the window's margins.
inline int merge_shared_bytes(int window) {
  return static_cast<int>(sizeof(MergeScratch)) + window * 4;
}

struct Merger {
  MergeScratch& scratch;
  uint32_t* best;  // ordered margins of the window's positions; 0: in no list
  uint2* merged;   // (ordered margin, position)
  int limit;       // entries that `merged` can hold
  int wanted;      // entries of the row
  int count = 0;   // entries so far
  uint32_t gate = kLowest;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ int block_sum(int x, int& total) {
    return block_exclusive_sum<kMergeThreads>(x, scratch.block.sums, total);
  }

  __device__ __forceinline__ void clear(int width) {
    for (int i = thread(); i < width; i += kMergeThreads) best[i] = 0;
    __syncthreads();
  }

  // Enters what of a query's list lies in the window, by one warp. The list is in order but for what was
  // stored at a time, so that the warp may begin where the last window's positions ended, and end after a
  // part without any of this one's.
  __device__ __forceinline__ void enter(const KeptRow& row, const uint8_t* slots, int begin, int width,
                                        int& cursor) {
    constexpr int kPart = 512;
    static_assert(kPart >= 2 * kLanesPerRow * kStaged,
                  "one with some of what was stored together, all or nothing");
    const float threshold = row.threshold;
    const int end = begin + width;
    int next = -1;
    for (int first = cursor; first < row.count; first += kPart) {
      bool earlier = false, later = false;
      for_each_entry(RowView{slots + 8 * first, min(kPart, row.count - first)}, [&](bool held, uint2 entry) {
        const int position = static_cast<int>(entry.y);
        const float margin = __uint_as_float(entry.x) - threshold;
        earlier |= held && position < end;
        later |= held && position >= end;
        // Not NaN, which infinite scores leave, nor -inf.
        if (held && position >= begin && position < end && margin > -kInfinity)
          atomicMax(&best[position - begin], ordered_key(margin));
      });
      if (next < 0 && __any_sync(kWarp, later)) next = first;
      if (!__any_sync(kWarp, earlier)) break;
    }
    __syncwarp();  // all lanes have read it
    if ((threadIdx.x & 31) == 0) cursor = next >= 0 ? next : row.count;
  }

  // Appends what of the window lies above the gate.
  __device__ __forceinline__ void collect(int begin, int width) {
    for (int base = 0; base < width; base += kMergeStep) {
      if (count + kMergeStep > limit) cut();
      const int first = base + 4 * thread();
      uint32_t keys[4];
      int mine = 0, total;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        keys[i] = first + i < width ? best[first + i] : 0;
        mine += keys[i] > gate;
      }
      int to = count + block_sum(mine, total);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (keys[i] > gate) merged[to++] = uint2{keys[i], static_cast<uint32_t>(begin + first + i)};
      count += total;
    }
    __syncthreads();
  }

  // Leaves the best `wanted` of the merged list, in their order.
  __device__ __forceinline__ void cut() {
    if (count <= wanted) return;
    __syncthreads();
    const uint32_t last = find_kth(scratch.block, wanted, [this](auto visit) {
      for (int i = thread(); i < count; i += kMergeThreads) visit(merged[i].x);
    });
    const int ties = scratch.block.found_rank;
    int sure = 0, equal = 0;  // before the step
    for (int base = 0; base < count; base += kMergeThreads) {
      const int i = base + thread();
      const uint2 entry = i < count ? merged[i] : uint2{0, 0};
      const int above = entry.x > last, tie = i < count && entry.x == last;
      int total;
      const int before = block_sum(above | tie << 16, total);
      const int equal_before = equal + (before >> 16);
      // What is written lies at or before what the step has read.
      if (above || (tie && equal_before < ties))
        merged[sure + (before & 0xffff) + min(equal_before, ties)] = entry;
      sure += total & 0xffff;
      equal += total >> 16;
    }
    count = wanted;
    gate = last;
    __syncthreads();
  }

  // How many of the merged list have a positive margin.
  __device__ __forceinline__ int count_positive() {
    const uint32_t zero = ordered_key(0.0f);
    int mine = 0, total;
    for (int i = thread(); i < count; i += kMergeThreads) mine += merged[i].x > zero;
    block_sum(mine, total);
    return total;
  }
};

// Fills a row of indices for every tile of every sequence: block r of a sequence has its tile r.
static __global__ void __launch_bounds__(kMergeThreads, 1)
    merge_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ ListSpace space,
                 int merged_limit, int window) {
  MergeScratch& scratch = cuda::shared_memory<MergeScratch>();
  uint8_t* base = static_cast<uint8_t*>(p.workspace);
  if (p.again != nullptr && p.again[blockIdx.x] == 0) return;
  const int tiles = static_cast<int>((p.queries + p.query_tile - 1) / p.query_tile);
  const int64_t sequence = blockIdx.x / tiles;
  const int first_query = static_cast<int>(blockIdx.x % tiles) * p.query_tile;
  const int queries = static_cast<int>(min(static_cast<int64_t>(p.query_tile), p.queries - first_query));
  const int start = static_cast<int>(first_query + p.keys - p.queries);
  const int64_t first_row = sequence * space.padded + first_query;
  const RowStore store{base + kHeaderBytes, space.row_limit};
  const KeptRow* rows = reinterpret_cast<const KeptRow*>(base + space.rows_at) + first_row;

  int budget = 0;
  for (int i = 0; i < queries; ++i) budget = max(budget, rows[i].wanted);
  const int kept = shared_kept(p, start);
  Merger merger{
      scratch, reinterpret_cast<uint32_t*>(&scratch + 1),
      reinterpret_cast<uint2*>(base + space.merged_at) + static_cast<int64_t>(blockIdx.x) * merged_limit,
      merged_limit, max(0, shared_keys(p.tile_factor, budget) - kept)};
  for (int i = static_cast<int>(threadIdx.x); i < queries; i += kMergeThreads) scratch.cursors[i] = 0;
  const int end = start - p.keep_recent;  // of the candidates
  for (int begin = p.keep_first; merger.wanted > 0 && begin < end; begin += window) {
    const int width = min(window, end - begin);
    merger.clear(width);
    for (int i = static_cast<int>(threadIdx.x) / 32; i < queries; i += kMergeThreads / 32)
      merger.enter(rows[i], store.row(first_row + i), begin, width, scratch.cursors[i]);
    __syncthreads();
    merger.collect(begin, width);
  }
  merger.cut();
  if (p.again == nullptr) {
    // Keys of no positive margin may have been left out of the lists.
    const bool again =
        shared_first_need(p, start) < shared_need(p, start) && merger.count_positive() < merger.wanted;
    if (threadIdx.x == 0) {
      reinterpret_cast<int32_t*>(base + space.again_at)[blockIdx.x] = again;
      if (again) reinterpret_cast<Header*>(base)->rows_again = 1;
    }
    if (again) return;
  }

  int32_t* out = p.indices + blockIdx.x * static_cast<int64_t>(p.capacity);
  const int first = min(p.keep_first, start), recent = max(first, start - p.keep_recent);
  const int recent_at = first + merger.count, own_at = recent_at + start - recent, all = own_at + queries;
  for (int i = static_cast<int>(threadIdx.x); i < p.capacity; i += kMergeThreads) {
    int32_t position = -1;
    if (i < first)
      position = i;
    else if (i < recent_at)
      position = static_cast<int32_t>(merger.merged[i - first].y);
    else if (i < all)  // the last kept positions and the tile's own follow each other
      position = recent + i - recent_at;
    out[i] = position;
  }
  if (threadIdx.x == 0) p.counts[blockIdx.x] = all;
}

}  // namespace gsa::fused_select
