// Finishing a row by its warp: the exact cut, mostly from the row's histogram, and the chosen positions in
// order; of shared rows, which another kernel merges, the score of the k-th best alone.
#pragma once

#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_row.h"
#include "gsa/ops/indexer/index_select_trim.h"

namespace gsa::fused_select {

constexpr int kBoundary = 256;  // entries of the histogram bin with the cut that the warp can rank by itself
constexpr int kWindowPairs =
    1024;  // the bitmap of chosen positions, in pairs of words: 64K positions at a time
constexpr uint32_t kBehindAll = 0x7fffffffu;  // the position of no entry

// Positions of a window that a warp puts in order before it writes them side by side.
constexpr int kGathered = 2048;

// What a warp finishes rows with. Of the bitmap there may be only as much as a row needs.
struct alignas(16) FinishScratch {
  uint32_t bins[kBins];
  union {
    uint2 boundary[kBoundary];
    uint32_t digits[kDigits];
  };
  uint2 bitmap[kWindowPairs];
};

// Marks a position, or counts, if `wanted`; without a branch.
__device__ __forceinline__ void mark_if(bool wanted, uint2* bitmap, int position) {
  uint32_t* word = reinterpret_cast<uint32_t*>(bitmap) + (position >> 5);
  const uint32_t bit = 1u << (position & 31);
#ifdef GSA_EMULATE_CUDA
  if (wanted) atomicOr(word, bit);
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %0, 0;\n"
      "@wanted red.shared.or.b32 [%1], %2;\n"
      "}\n" ::"r"(static_cast<int>(wanted)),
      "r"(cuda::mbarrier_address(word)), "r"(bit)
      : "memory");
#endif
}
__device__ __forceinline__ void count_if(bool wanted, uint32_t* counter) {
#ifdef GSA_EMULATE_CUDA
  if (wanted) atomicAdd(counter, 1u);
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %0, 0;\n"
      "@wanted red.shared.add.u32 [%1], 1;\n"
      "}\n" ::"r"(static_cast<int>(wanted)),
      "r"(cuda::mbarrier_address(counter))
      : "memory");
#endif
}

__device__ __forceinline__ void clear_bitmap(uint2* bitmap, int pairs) {
  __syncwarp();
  for (int i = threadIdx.x & 31; i < pairs; i += 32) bitmap[i] = uint2{0, 0};
  __syncwarp();
}

// The best `rank` (1 <= rank <= count) of the entries in scratch.boundary, by counting who is better.
__device__ __forceinline__ Cut rank_boundary(const FinishScratch& scratch, int count, int rank) {
  const int lane = threadIdx.x & 31;
  Cut cut = Cut::nothing();
  bool mine = false;
  for (int i = lane; i < count; i += 32) {
    const uint2 entry = scratch.boundary[i];
    const float score = __uint_as_float(entry.x);
    int better = 0;
    for (int j = 0; j < count; ++j) {
      const uint2 other = scratch.boundary[j];
      const float its = __uint_as_float(other.x);
      better += its > score || (its == score && other.y < entry.y);
    }
    if (better == rank - 1) {
      cut = {ordered_key(score), static_cast<int>(entry.y)};
      mine = true;
    }
  }
  const int owner = __ffs(__ballot_sync(kWarp, mine)) - 1;
  return {__shfl_sync(kWarp, cut.key, owner), __shfl_sync(kWarp, cut.position, owner)};
}

// The part of the bitmap that a row of so many keys uses.
GSA_HOST_DEVICE inline int bitmap_pairs(int64_t keys) {
  const int64_t pairs = (keys + 4095) / 4096 * 64;  // 64 pairs are cleared at a time
  return pairs < kWindowPairs ? static_cast<int>(pairs) : kWindowPairs;
}

// Where and how a row's positions go out.
struct RowWriter {
  int32_t* out;
  int first;   // positions below are chosen anyway
  int recent;  // and from here on
  int last;    // of the query
  uint16_t* gathered =
      nullptr;  // room for kGathered, if positions are to be gathered before they are written
  int written = 0;

  static constexpr int kWindow = 64 * kWindowPairs;

  __device__ __forceinline__ void mark_kept(uint2* bitmap, int begin) const {
    const int lane = threadIdx.x & 31;
    const int end = min(last + 1, begin + kWindow);
    for (int p = begin + lane; p < min(first, end); p += 32) mark_if(true, bitmap, p - begin);
    for (int p = max(recent, begin) + lane; p < end; p += 32) mark_if(true, bitmap, p - begin);
  }

  // Writes -1 behind the last position, up to `capacity`. Returns how many positions there are.
  __device__ __forceinline__ int fill_up(int capacity) const {
    for (int i = written + (threadIdx.x & 31); i < capacity; i += 32) out[i] = -1;
    return written;
  }

  // A row of every position.
  __device__ __forceinline__ int write_all(int capacity) {
    for (int i = threadIdx.x & 31; i <= last; i += 32) out[i] = i;
    written = last + 1;
    return fill_up(capacity);
  }

  // Writes the positions marked in the bitmap, which starts at position `begin`, in ascending order, and
  // clears it. Two words a lane, twice: one prefix sum counts both, in halves.
  __device__ __forceinline__ void emit(uint2* bitmap, int begin) {
    const int lane = threadIdx.x & 31;
    const int pairs = (min(last + 1 - begin, kWindow) + 63) / 64;
    static_assert(kWindowPairs % 64 == 0);
    __syncwarp();
    if (gathered != nullptr) return emit_gathered(bitmap, begin, pairs);
    for (int base = 0; base < pairs; base += 64) {
      const uint2 low = bitmap[base + lane], high = bitmap[base + 32 + lane];
      bitmap[base + lane] = bitmap[base + 32 + lane] = uint2{0, 0};
      const uint32_t mine = __popc(low.x) + __popc(low.y) + ((__popc(high.x) + __popc(high.y)) << 16);
      const uint32_t before = cuda::warp_exclusive_sum(static_cast<int>(mine));
      const uint32_t all = __shfl_sync(kWarp, before + mine, 31);
      int32_t* to = out + written;
      put(low, begin + 64 * (base + lane), to + (before & 0xffff));
      put(high, begin + 64 * (base + 32 + lane), to + (all & 0xffff) + (before >> 16));
      written += static_cast<int>((all & 0xffff) + (all >> 16));
    }
    __syncwarp();
  }

 private:
  // The same where many are marked: a lane's positions lie far from its neighbours', and written by the lane
  // each would be a transaction.
  __device__ __forceinline__ void emit_gathered(uint2* bitmap, int begin, int pairs) {
    const int lane = threadIdx.x & 31;
    for (int base = 0; base < pairs; base += 32) {
      const uint2 words = bitmap[base + lane];
      bitmap[base + lane] = uint2{0, 0};
      const int mine = __popc(words.x) + __popc(words.y), before = cuda::warp_exclusive_sum(mine);
      static_assert(kGathered >= 32 * 64 && kWindow <= 1 << 16);
      put(words, 64 * (base + lane), gathered + before);
      const int all = __shfl_sync(kWarp, before + mine, 31);
      __syncwarp();
      for (int i = lane; i < all; i += 32) out[written + i] = begin + gathered[i];
      __syncwarp();
      written += all;
    }
  }

  template <class Position>
  static __device__ __forceinline__ void put(uint2 words, int position, Position* to) {
    for (; words.x != 0; words.x &= words.x - 1) *to++ = static_cast<Position>(position + __ffs(words.x) - 1);
    for (; words.y != 0; words.y &= words.y - 1)
      *to++ = static_cast<Position>(position + __ffs(words.y) + 31);
  }
};

// Counts the row's entries in scratch.bins.
__device__ __forceinline__ void count_entries(const RowView& row, Scale scale, FinishScratch& scratch) {
  for (int i = threadIdx.x & 31; i < kBins; i += 32) scratch.bins[i] = 0;
  __syncwarp();
  for_each_entry(row, [&](bool held, uint2 entry) {
    count_if(held, &scratch.bins[scale.bin(__uint_as_float(entry.x))]);
  });
  __syncwarp();
}

// Finds the cut of the best `need` entries, and with kMark marks the first window's positions of the best
// `need` entries: those that surely are, by the histogram, on the way, those near the cut once they are
// ranked. 1 <= need < row.total. False, with the bitmap in disorder, where too many lie near the cut.
template <bool kMark>
__device__ __forceinline__ bool cut_by_histogram(const RowView& row, int need, Scale scale,
                                                 FinishScratch& scratch, Cut& cut) {
  const int lane = threadIdx.x & 31;
  count_entries(row, scale, scratch);
  const Digit at = find_digit<kBins>(scratch.bins, need);
  const float sure = at.digit == kBins - 1 ? kInfinity : scale.surely_above(at.digit);
  const float near = at.digit == 0 ? -kInfinity : scale.surely_not_below(at.digit);
  int surely = 0, count = 0;
  for_each_entry(row, [&](bool held, uint2 entry) {
    const float score = __uint_as_float(entry.x);
    const bool taken = held && score >= sure;
    const bool close = held && score >= near && !taken;
    surely += taken;
    if (kMark) mark_if(taken && entry.y < RowWriter::kWindow, scratch.bitmap, entry.y);
    const uint32_t all = __ballot_sync(kWarp, close);
    if (all != 0) {
      const int slot = count + __popc(all & ((1u << lane) - 1));
      if (close && slot < kBoundary) scratch.boundary[slot] = entry;
      count += __popc(all);
    }
  });
  const int rank = need - __reduce_add_sync(kWarp, surely);
  __syncwarp();
  if (count > kBoundary || rank < 1 || rank > count) return false;
  cut = rank_boundary(scratch, count, rank);
  for (int i = lane; kMark && i < count; i += 32) {
    const uint2 entry = scratch.boundary[i];
    mark_if(entry.y < RowWriter::kWindow && cut.takes(entry), scratch.bitmap, entry.y);
  }
  return true;
}

// Entries that may be out of order: those flushed together.
constexpr int kDisorder = kLanesPerRow * kStaged;

// A slot before which no entry lies at `begin` or after it. The lanes look at one entry each.
__device__ __forceinline__ int slot_of_window(const RowView& row, int begin) {
  if (begin == 0) return 0;
  const int lane = threadIdx.x & 31, step = (row.total + 31) / 32, at = lane * step;
  const bool before = at < row.total && static_cast<int>(load_entry(row.slots + 8 * at).y) < begin;
  const uint32_t not_before = ~__ballot_sync(kWarp, before);
  const int last = not_before == 0 ? 31 : __ffs(not_before) - 2;  // of those before it, in a row
  return max(0, last * step - kDisorder) & ~1;
}

// Marks the positions of the window from `begin` on that the cut takes.
__device__ __forceinline__ void mark_by_cut(const RowView& row, Cut cut, int begin, uint2* bitmap) {
  constexpr int kFlight = 8, kLast = (kDisorder + 63) / 64;
  const int lane = threadIdx.x & 31, end = begin + RowWriter::kWindow;
  for (int slot = slot_of_window(row, begin); slot < row.total; slot += 64 * kFlight) {
    uint4 pairs[kFlight];
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      const int at = slot + 64 * i + 2 * lane;
      pairs[i] = uint4{0, kBehindAll, 0, kBehindAll};
      if (at < row.total) pairs[i] = load_pair(row.slots + 8 * at);
      if (at + 1 == row.total) pairs[i].w = kBehindAll;
    }
    bool more = false;
#pragma unroll
    for (int i = 0; i < kFlight; ++i) {
      for (const uint2 entry : {uint2{pairs[i].x, pairs[i].y}, uint2{pairs[i].z, pairs[i].w}}) {
        const int position = static_cast<int>(entry.y);
        mark_if(position >= begin && position < end && cut.takes(entry), bitmap, position - begin);
        if (i >= kFlight - kLast) more |= position < end;
      }
    }
    // Where so many in a row lie behind the window, all that follow do.
    if (!__any_sync(kWarp, more)) break;
  }
}

// Writes a row: the best `need` of its entries and the kept positions, ascending, then -1 up to `capacity`.
// Returns how many were chosen. The bitmap is zero before and after.
__device__ __forceinline__ int finish_row(const RowView& row, int need, Scale scale, RowWriter writer,
                                          int capacity, FinishScratch& scratch) {
  const int candidates = max(0, writer.recent - writer.first);
  if (row.total == candidates && need >= candidates) return writer.write_all(capacity);
  Cut cut = need == 0 ? Cut::nothing() : Cut::everything();
  bool marked = need == 0;
  if (need > 0 && row.total > need) {
    marked = cut_by_histogram<true>(row, need, scale, scratch, cut);
    if (!marked) {
      clear_bitmap(scratch.bitmap, bitmap_pairs(writer.last + 1));
      cut = radix_cut(row, need, scratch.digits);
    }
  }
  for (int begin = 0; begin <= writer.last; begin += RowWriter::kWindow) {
    if (!marked) mark_by_cut(row, cut, begin, scratch.bitmap);
    marked = need == 0;
    writer.mark_kept(scratch.bitmap, begin);
    writer.emit(scratch.bitmap, begin);
  }
  return writer.fill_up(capacity);
}

// The score of the k-th best entry of a row, or of its worst where it has fewer; infinity for an empty one.
__device__ __forceinline__ float kth_entry(const RowView& row, int k, Scale scale, FinishScratch& scratch) {
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

}  // namespace gsa::fused_select
