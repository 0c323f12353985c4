// What a thread block does together: prefix sums, and the rank-th largest of keys by radix steps.
#pragma once

#include <cstdint>

#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_trim.h"

namespace gsa::fused_select {

template <int kThreads, int kDigits>
struct BlockScratch {
  uint32_t digits[kDigits];
  int sums[kThreads / 32];
  int found_digit;
  int found_rank;
  int found_count;
};

// Sum over the threads before this one, and over all. All threads of the block take part.
template <int kThreads>
__device__ __forceinline__ int block_exclusive_sum(int x, int* sums, int& total) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int before = cuda::warp_exclusive_sum(x);
  if ((threadIdx.x & 31) == 31) sums[warp] = before + x;
  __syncthreads();
  total = 0;
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) before += sums[w];
    total += sums[w];
  }
  __syncthreads();
  return before;
}

// Two sums over the block. All have read what is in `sums`.
template <class Sum, int kWarps>
__device__ __forceinline__ int2 block_sums(Sum a, Sum b, Sum (*sums)[kWarps]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  a = __reduce_add_sync(0xffffffffu, a);
  b = __reduce_add_sync(0xffffffffu, b);
  if ((threadIdx.x & 31) == 0) {
    sums[0][warp] = a;
    sums[1][warp] = b;
  }
  __syncthreads();
  a = b = 0;
  for (int i = 0; i < kWarps; ++i) {
    a += sums[0][i];
    b += sums[1][i];
  }
  return {static_cast<int>(a), static_cast<int>(b)};
}

// The rank-th largest of the keys that for_each_key(visit) hands to visit(key), a share to each thread; there
// are at least so many. Of those equal to it found_rank are wanted, and there are found_count. Radix steps
// through the lowest `width` bits, others are zero; in each the first warp finds the digit.
template <int kThreads, int kDigits, class ForEachKey>
__device__ __forceinline__ uint32_t find_kth(BlockScratch<kThreads, kDigits>& scratch, int rank,
                                             ForEachKey for_each_key, int width = 32) {
  constexpr int kBits = kDigits == 2048 ? 11 : 9;
  static_assert(kDigits == 1 << kBits);
  uint32_t prefix = 0, known = 0;
  for (int shift = max(width - kBits, 0);; shift = max(shift - kBits, 0)) {
    for (int i = static_cast<int>(threadIdx.x); i < kDigits; i += kThreads) scratch.digits[i] = 0;
    __syncthreads();
    for_each_key([&](uint32_t key) {
      if (((key ^ prefix) & known) == 0) atomicAdd(&scratch.digits[key >> shift & (kDigits - 1)], 1u);
    });
    __syncthreads();
    if (threadIdx.x < 32) {
      const Digit found = find_digit<kDigits>(scratch.digits, rank);
      if (threadIdx.x == 0) {
        scratch.found_digit = found.digit;
        scratch.found_rank = found.rank;
        scratch.found_count = found.count;
      }
    }
    __syncthreads();
    prefix |= static_cast<uint32_t>(scratch.found_digit) << shift;
    known |= uint32_t{kDigits - 1} << shift;
    rank = scratch.found_rank;
    if (shift == 0) return prefix;
  }
}

// The rank-th, in order, of the positions before `length` that for_each_position(visit) hands to visit.
template <int kThreads, int kDigits, class ForEachPosition>
__device__ __forceinline__ int find_kth_position(BlockScratch<kThreads, kDigits>& scratch, int rank,
                                                 int length, ForEachPosition for_each_position) {
  const int width = 32 - __clz(length);
  const uint32_t last = (1u << width) - 1;
  const uint32_t key = find_kth(
      scratch, rank,
      [&](auto visit) { for_each_position([&](int at) { visit(last - static_cast<uint32_t>(at)); }); },
      width);
  return static_cast<int>(last - key);
}

}  // namespace gsa::fused_select
