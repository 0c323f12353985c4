// Shared rows: what the streaming kernel leaves of each query for the kernel that merges a tile's queries
// (index_select_merge.cuh).
#pragma once

#include <type_traits>

#include "gsa/ops/indexer/index_select_finish.h"
#include "gsa/ops/indexer/index_select_plan.h"
#include "gsa/ops/indexer/index_select_stage.h"

namespace gsa::fused_select {

// Notes of a query of a shared row. Nine words, so that neighbours lie in different banks.
struct SharedNotes : RowNotes {
  int end = 0;  // the tile's start: candidates lie before it
  int unused = 0;
};

template <class S>
using Notes = std::conditional_t<S::kShared, SharedNotes, RowNotes>;

// The last position that the row chooses among; -1: none.
template <class S>
__device__ __forceinline__ int row_last(const Notes<S>& notes) {
  if constexpr (S::kShared) {
    return notes.end - 1;
  } else {
    return notes.position;
  }
}

// The score of the k-th best entry of a row, or of its worst where it has fewer; infinity for an empty one.
__device__ __forceinline__ float kth_entry(const RowView& row, int k, Scale scale, WarpScratch& scratch) {
  if (row.total == 0) return kInfinity;
  Cut cut = Cut::everything();
  __syncwarp();
  if (row.total > k) {
    if (cut_by_histogram<false>(row, k, scale, scratch, cut)) return ordered_value(cut.key);
    __syncwarp();
    cut = radix_cut(row, k, scratch.digits);
  }
  // That cut may lie between two scores.
  uint32_t lowest = 0xffffffffu;
  for_each_entry(row, [&](bool held, uint2 entry) {
    if (held && cut.takes(entry)) lowest = min(lowest, ordered_key(__uint_as_float(entry.x)));
  });
  return ordered_value(__reduce_min_sync(kWarp, lowest));
}

// Writes down what the merge has to know of a row besides its list.
__device__ __forceinline__ void note_shared_row(const RowView& row, int k, Scale scale, WarpScratch& scratch,
                                                SharedRow& to) {
  const int lane = threadIdx.x & 31;
  const float threshold = kth_entry(row, k, scale, scratch);
  if (lane == 0) {
    to.count = row.total;
    to.threshold = threshold;
    to.budget = k;
  }
}

}  // namespace gsa::fused_select
