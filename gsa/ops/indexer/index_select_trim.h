// The exact cut of a row by radix steps, whatever its scores, and trimming a row to it: for lists that are
// full in the middle of the stream, and for rows whose histogram does not tell enough. By one warp, a row at
// a time.
#pragma once

#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_row.h"

namespace gsa::fused_select {

constexpr int kDigits = 256;  // of one radix step

// The digit of a histogram that holds the rank-th largest.
struct Digit {
  int digit;
  int rank;   // how many of the digit's are wanted
  int count;  // how many it has
};

template <int kSize>
__device__ __forceinline__ Digit find_digit(const uint32_t* histogram, int rank) {
  const int lane = threadIdx.x & 31;
  constexpr int kEach = kSize / 32;
  // Lane 0 looks at the largest digits, so that prefix sums count from the top.
  const int top = kSize - 1 - lane * kEach;
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += histogram[top - i];
  int above = cuda::warp_exclusive_sum(sum);
  Digit found{-1, 0, 0};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int count = histogram[top - i];
    if (above < rank && rank <= above + count) found = {top - i, rank - above, count};
    above += count;
  }
  const int owner = __ffs(__ballot_sync(kWarp, found.digit >= 0)) - 1;
  return {__shfl_sync(kWarp, found.digit, owner), __shfl_sync(kWarp, found.rank, owner),
          __shfl_sync(kWarp, found.count, owner)};
}

// The rank-th largest key among the entries that key_of gives one for (it returns false for others). Stops
// early where all entries of a prefix are wanted: then `digit` is that prefix with zeros below it, and rank
// == count.
template <class KeyOf>
__device__ Digit radix_kth(const RowView& row, int rank, int first_shift, uint32_t prefix,
                           uint32_t* histogram, KeyOf key_of) {
  const int lane = threadIdx.x & 31;
  Digit found{0, rank, 0};
  uint32_t fixed =
      first_shift + 8 >= 32 ? 0u : 0xffffffffu << (first_shift + 8);  // bits of prefix already known
  for (int shift = first_shift;; shift = max(shift - 8, 0)) {
    for (int i = lane; i < kDigits; i += 32) histogram[i] = 0;
    __syncwarp();
    for_each_entry(row, [&](bool held, uint2 entry) {
      uint32_t key;
      if (held && key_of(entry, key) && ((key ^ prefix) & fixed) == 0)
        atomicAdd(&histogram[(key >> shift) & (kDigits - 1)], 1u);
    });
    __syncwarp();
    found = find_digit<kDigits>(histogram, found.rank);
    __syncwarp();
    prefix = (prefix & fixed) | (static_cast<uint32_t>(found.digit) << shift);
    fixed = 0xffffffffu << shift;
    if (shift == 0 || found.rank == found.count) return {static_cast<int>(prefix), found.rank, found.count};
  }
}

// Where to cut so that the best `need` entries of the row remain; 1 <= need < row.total. `histogram`: kDigits
// words.
static __device__ __noinline__ Cut radix_cut(RowView row, int need, uint32_t* histogram) {
  uint32_t low = 0xffffffffu, high = 0;
  for_each_entry(row, [&](bool held, uint2 entry) {
    const uint32_t key = ordered_key(__uint_as_float(entry.x));
    if (held) low = min(low, key), high = max(high, key);
  });
  low = __reduce_min_sync(kWarp, low);
  high = __reduce_max_sync(kWarp, high);
  // Digits start below the bits that all keys share.
  const int first_shift = low == high ? 0 : max(0, 32 - __clz(low ^ high) - 8);
  const Digit kth = radix_kth(row, need, first_shift, high, histogram, [](uint2 entry, uint32_t& key) {
    key = ordered_key(__uint_as_float(entry.x));
    return true;
  });
  const uint32_t key = static_cast<uint32_t>(kth.digit);
  if (kth.rank == kth.count) return cut_below(key);
  const Digit tie = radix_kth(row, kth.rank, 24, 0, histogram, [key](uint2 entry, uint32_t& inverse) {
    inverse = ~entry.y;
    return ordered_key(__uint_as_float(entry.x)) == key;
  });
  return {key, ~tie.digit};
}

// Keeps the entries that the cut takes. Returns how many they are.
__device__ __forceinline__ int keep_taken(const RowView& row, Cut cut) {
  const int lane = threadIdx.x & 31;
  int kept = 0;
  for (int base = 0; base < row.total; base += 32) {
    const int slot = base + lane;
    const bool held = slot < row.total;
    uint2 entry{};
    if (held) entry = load_entry(row.slots + 8 * slot);
    const bool keep = held && cut.takes(entry);
    const uint32_t keepers = __ballot_sync(kWarp, keep);
    // Never beyond the slots read so far, so nothing unread is overwritten.
    const int to = kept + __popc(keepers & ((1u << lane) - 1));
    if (keep) store_entry(const_cast<uint8_t*>(row.slots) + 8 * to, entry);
    kept += __popc(keepers);
  }
  __syncwarp();
  return kept;
}

// What trimming leaves of a thread's row.
struct Trimmed {
  int total;  // -1: untouched
  float gate;
};

// Trims every row of the warp that has a full list to its `need` best so far and raises its gate to the last
// of them. Later keys lie at higher positions, so one that equals the gate would lose the tie. By value both
// ways, so that the caller's row stays in registers. `rows`: the first of the warp's lists.
static __device__ __noinline__ Trimmed trim_full_rows(uint8_t* rows, int row_limit, int count, float gate,
                                                      int need, bool full, uint32_t* digits) {
  const int lane = threadIdx.x & 31;
  Trimmed mine{-1, gate};
  uint32_t wanting = __ballot_sync(kWarp, full);
  __syncwarp();
  while (wanting != 0) {
    const int r = (__ffs(wanting) - 1) / 4;
    wanting &= ~(0xfu << (4 * r));
    const RowView view{RowStore{rows, row_limit}.row(r), __shfl_sync(kWarp, count, 4 * r)};
    const int keep = __shfl_sync(kWarp, need, 4 * r);
    const bool all = view.total <= keep;
    const Cut cut = all ? Cut::everything() : radix_cut(view, keep, digits);
    const int total = keep_taken(view, cut);
    if (lane / 4 == r) mine = {total, all ? gate : ordered_value(cut.key)};
  }
  __syncwarp();
  return mine;
}

}  // namespace gsa::fused_select
