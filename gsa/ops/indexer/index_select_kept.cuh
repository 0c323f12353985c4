// Finishes rows whose lists the streaming kernel has left in the workspace, a warp a row: rows of their own
// are written, of shared rows it finds each query's threshold for the merge (docs/kernels/index_select.md).
//
// Finishing waits for memory more than it computes, and this kernel has two to three times as many warps to
// wait with as the streaming one.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/ops/indexer/index_select_finish.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa::fused_select {

constexpr int kKeptWarps = 4;  // of a block, each for itself

// Shared memory of a warp: the scratch, with as much of its bitmap as rows need, and in place of what it
// needs before the bitmap, later, the gathered positions, which begin earlier.
constexpr int kScratchAt = kGathered * 2 - static_cast<int>(offsetof(FinishScratch, bitmap));
static_assert(kScratchAt >= 0 && kScratchAt % alignof(FinishScratch) == 0);
inline int kept_scratch_bytes(const IndexSelectParams& p) {
  return kGathered * 2 + (p.query_tile > 1 ? 0 : bitmap_pairs(p.keys) * static_cast<int>(sizeof(uint2)));
}

static __global__ void __launch_bounds__(32 * kKeptWarps, 6)
    finish_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ ListSpace space,
                  int scratch_bytes) {
  uint8_t* base = static_cast<uint8_t*>(p.workspace);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) & 31;
  uint8_t* shared = &cuda::shared_memory<uint8_t>() + warp * scratch_bytes;
  FinishScratch& scratch = *reinterpret_cast<FinishScratch*>(shared + kScratchAt);
  const int64_t token = int64_t{blockIdx.x} * kKeptWarps + warp;
  if (token >= p.batch * p.queries) return;
  const int64_t sequence = token / p.queries, query = token % p.queries;
  if (p.again != nullptr && p.again[sequence * rows_of(p) + query / p.query_tile] == 0) return;
  const int64_t at = sequence * space.padded + query;
  KeptRow& note = reinterpret_cast<KeptRow*>(base + space.rows_at)[at];
  const RowView row{RowStore{base + kHeaderBytes, space.row_limit}.row(at), note.count};
  const Scale scale{note.low, note.per_bin};
  if (p.query_tile > 1) {
    const float threshold = kth_entry(row, note.wanted, scale, scratch);
    if (lane == 0) note.threshold = threshold;
    return;
  }
  const int position = static_cast<int>(query + p.keys - p.queries);
  clear_bitmap(scratch.bitmap, bitmap_pairs(p.keys));
  const RowWriter writer{p.indices + token * p.capacity, min(p.keep_first, position + 1),
                         max(0, position + 1 - p.keep_recent), position, reinterpret_cast<uint16_t*>(shared)};
  const int written = finish_row(row, note.wanted, scale, writer, p.capacity, scratch);
  if (lane == 0) p.counts[token] = written;
}

}  // namespace gsa::fused_select
