// A query's row of survivors, and the order among them.
//
// A row's survivors lie in a list in the workspace, in no order. An entry is (score, position). Higher scores
// come first, equal scores by position.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa::fused_select {

constexpr uint32_t kWarp = 0xffffffffu;
constexpr uint32_t kLowest = 0x007fffffu;  // the ordered key of -inf; no entry has it or less
constexpr float kInfinity = __builtin_inff();
constexpr float kAboveAll = 3e38f;  // a gate that no bounded score passes

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

// The same with a score instead of a key.
struct ScoreCut {
  float score;
  int position;

  __device__ __forceinline__ bool takes(float s, int at) const {
    return s > score || (s == score && at <= position);
  }
  static __device__ __forceinline__ ScoreCut everything() { return {-kInfinity, -1}; }
};

// How a row's scores fall into the bins of its histogram: linear, the ends take what lies outside.
struct Scale {
  float low;
  float per_bin;  // bins per unit of score

  // Scores that surely lie in bins above, or not below, this one; the margin covers the rounding of bin().
  __device__ __forceinline__ float surely_above(int bin) const { return edge(bin + 1.01f); }
  __device__ __forceinline__ float surely_not_below(int bin) const { return edge(bin - 0.01f); }
  __device__ __forceinline__ float edge(float bin) const { return low + bin / per_bin; }

  // Rounds down without the conversion unit.
  __device__ __forceinline__ int bin(float score) const {
    const float at = fminf(fmaxf((score - low) * per_bin, 0.0f), static_cast<float>(kBins - 1));
    constexpr float kOnes = 1 << 23;  // a float from here on has no fraction: its lowest bits are the integer
    return static_cast<int>(__float_as_uint(__fadd_rd(at, kOnes)) & (kBins - 1));
  }
};

// The rows of all thread blocks in the workspace.
struct RowStore {
  uint8_t* base;
  int row_limit;  // entries of a list

  __device__ __forceinline__ uint8_t* row(size_t index) const { return base + index * row_limit * 8; }
};

// One row as its warp sees it.
struct RowView {
  const uint8_t* slots;
  int total;  // entries
};

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
  for (int base = 0; base < row.total; base += 64 * kFlight) {
    uint4 pairs[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int slot = base + 64 * i + 2 * lane;
      pairs[i] = uint4{0, 0, 0, 0};
      if (slot < row.total) pairs[i] = load_pair(row.slots + 8 * slot);
    }
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int slot = base + 64 * i + 2 * lane;
      if (base + 64 * i >= row.total) break;
      visit(slot < row.total, uint2{pairs[i].x, pairs[i].y});
      visit(slot + 1 < row.total, uint2{pairs[i].z, pairs[i].w});
    }
  }
}

}  // namespace gsa::fused_select
