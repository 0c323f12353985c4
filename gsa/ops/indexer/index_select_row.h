// A query's row of survivors, and the order among them.
//
// A row's survivors lie in four interleaved lists in the workspace, one a lane of the quad that scores the
// row: entry i of lane c is slot 4 i + c. An entry is (score, position). Higher scores come first, equal
// scores by position.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa::fused_select {

constexpr uint32_t kWarp = 0xffffffffu;
constexpr uint32_t kLowest = 0x007fffffu;  // the ordered key of -inf; no entry has it or less
constexpr float kInfinity = __builtin_inff();

// Unsigned keys in the order of the floats; -0 equals +0.
__device__ __forceinline__ uint32_t ordered_key(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float ordered_value(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) ? 0x80000000u : 0xffffffffu));
}

// An entry is taken if its key is above `key`, or equal to it and at or before `position`.
struct Cut {
  uint32_t key;
  int position;

  __device__ __forceinline__ bool takes(uint2 entry) const {
    const uint32_t mine = ordered_key(__uint_as_float(entry.x));
    return mine > key || (mine == key && static_cast<int>(entry.y) <= position);
  }
  static __device__ __forceinline__ Cut everything() { return {kLowest, -1}; }
  static __device__ __forceinline__ Cut nothing() { return {0xffffffffu, -1}; }
};

// The cut below a key of which, and of everything above it, all entries are wanted.
__device__ __forceinline__ Cut cut_below(uint32_t key) {
  return {max(key, kLowest + 1) - 1, -1};
}

// How a row's scores fall into the bins of its histogram: linear, the ends take what lies outside.
struct Scale {
  float low;
  float per_bin;  // bins per unit of score

  // Scores that surely lie in bins above, or not below, this one; the margin covers the rounding of bin().
  __device__ __forceinline__ float surely_above(int bin) const { return edge(bin + 1.01f); }
  __device__ __forceinline__ float surely_not_below(int bin) const { return edge(bin - 0.01f); }
  __device__ __forceinline__ float edge(float bin) const { return low + bin / per_bin; }

  __device__ __forceinline__ int bin(float score) const {
    return min(max(__float2int_rd((score - low) * per_bin), 0), kBins - 1);
  }
};

constexpr int kEntryStep = 8 * kLanesPerRow;  // bytes from one entry of a list to the next

// The rows of all thread blocks in the workspace.
struct RowStore {
  uint8_t* base;
  int lane_limit;  // entries of a list

  __device__ __forceinline__ uint8_t* row(size_t index) const {
    return base + index * lane_limit * kEntryStep;
  }
};

// One row as its warp sees it.
struct RowView {
  const uint8_t* slots;
  int mine;     // entries of list threadIdx.x % 4
  int pair[2];  // entries of the lists of this thread's slots when slots are taken in pairs
  int longest;  // of the four lists
  int total;

  __device__ __forceinline__ int end() const { return kLanesPerRow * longest; }
};

__device__ __forceinline__ RowView view_row(const uint8_t* my_row, int my_count, int row) {
  const int lane = threadIdx.x & 31;
  RowView view;
  view.slots = reinterpret_cast<const uint8_t*>(
      __shfl_sync(kWarp, reinterpret_cast<unsigned long long>(my_row), 4 * row));
  view.mine = __shfl_sync(kWarp, my_count, 4 * row + (lane & 3));
  view.pair[0] = __shfl_sync(kWarp, my_count, 4 * row + 2 * (lane & 1));
  view.pair[1] = __shfl_sync(kWarp, my_count, 4 * row + 2 * (lane & 1) + 1);
  view.longest = max(view.mine, __shfl_xor_sync(kWarp, view.mine, 1));
  view.longest = max(view.longest, __shfl_xor_sync(kWarp, view.longest, 2));
  view.total = view.mine + __shfl_xor_sync(kWarp, view.mine, 1);
  view.total += __shfl_xor_sync(kWarp, view.total, 2);
  return view;
}

// Loads that see what other lanes of the warp stored.
__device__ __forceinline__ uint4 load_pair(const uint8_t* address) {
  uint4 v;
#ifdef GSA_EMULATE_CUDA
  v = *reinterpret_cast<const uint4*>(address);
#else
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
#endif
  return v;
}
__device__ __forceinline__ uint2 load_entry(const uint8_t* address) {
  uint2 v;
#ifdef GSA_EMULATE_CUDA
  v = *reinterpret_cast<const uint2*>(address);
#else
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
#endif
  return v;
}
__device__ __forceinline__ void store_entry(uint8_t* address, uint2 entry) {
#ifdef GSA_EMULATE_CUDA
  *reinterpret_cast<uint2*>(address) = entry;
#else
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(address), "r"(entry.x), "r"(entry.y));
#endif
}

// The warp calls visit(held, entry) for all slots of the row, together; `held` tells the lanes that have an
// entry. Lanes load pairs of slots, several at a time.
template <class Visit>
__device__ __forceinline__ void for_each_entry(const RowView& row, Visit visit) {
  constexpr int kFlight = 8;
  const int lane = threadIdx.x & 31;
  // Pair `base + lane` holds entry (base + lane) / 2 of lists 2 (lane % 2) and the next.
  for (int base = 0; 2 * base < row.end(); base += 32 * kFlight) {
    uint4 pairs[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int pair = base + 32 * i + lane;
      pairs[i] = uint4{0, 0, 0, 0};
      if (pair / 2 < row.longest) pairs[i] = load_pair(row.slots + 16 * pair);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      if (2 * (base + 32 * i) >= row.end()) break;
      const int entry = (base + 32 * i + lane) / 2;
      visit(entry < row.pair[0], uint2{pairs[i].x, pairs[i].y});
      visit(entry < row.pair[1], uint2{pairs[i].z, pairs[i].w});
    }
  }
}

}  // namespace gsa::fused_select
