// From bits to positions: how a thread block writes the row that a bitmap stands for.
#pragma once

#include <cstdint>

#include "gsa/ops/indexer/index_select_block.h"

namespace gsa::fused_select {

constexpr int kPlaces = 2048;     // positions put in order in shared memory before they are written
constexpr int kWindow = 1 << 16;  // positions whose lower bits tell them apart

// Bits of the word from `begin` on whose positions lie in [from, to).
__device__ __forceinline__ uint32_t bits_between(int begin, int from, int to) {
  const int low = max(from - begin, 0), high = min(to - begin, 32);
  if (low >= high) return 0;
  return (high == 32 ? ~0u : (1u << high) - 1) & (~0u << low);
}

// A row of `length` positions: those of [first, recent) whose bits are set, and all others.
template <int kThreads>
struct PositionWriter {
  const uint32_t* words;
  uint16_t* gathered;  // kPlaces of them
  int* scan;           // a word a warp
  int length;
  int first;
  int recent;

  // Writes the positions, ascending, then -1 up to `capacity`; with `all` those of the whole row. Returns how
  // many positions there are.
  __device__ __forceinline__ int write(int32_t* out, int capacity, bool all) const {
    int written = all ? length : first;
    if (all || first > 0) put_range(out, 0, written);
    if (!all) {
      for (int begin = first / kWindow * kWindow; begin < recent; begin += kWindow)
        written += write_window(begin, out + written);
      put_range(out + written, recent, length);
      written += length - recent;
    }
#pragma unroll 1
    for (int i = written + thread(); i < capacity; i += kThreads) out[i] = -1;
    return written;
  }

 private:
  static __device__ __forceinline__ int thread() {
    return static_cast<int>(threadIdx.x);
  }

  // Calls visit(i) for multiples of four that `out` allows to write together, and single(i) for what is left.
  template <class Four, class Single>
  static __device__ __forceinline__ void for_each_place(const int32_t* out, int count, Four four,
                                                        Single single) {
    const int whole = reinterpret_cast<uintptr_t>(out) % 16 == 0 ? count & ~3 : 0;
#pragma unroll 1
    for (int i = 4 * thread(); i < whole; i += 4 * kThreads) four(i);
#pragma unroll 1
    for (int i = whole + thread(); i < count; i += kThreads) single(i);
  }

  static __device__ __forceinline__ void put_range(int32_t* out, int from, int to) {
    for_each_place(
        out, to - from,
        [&](int i) {
          *reinterpret_cast<int4*>(out + i) = int4{from + i, from + i + 1, from + i + 2, from + i + 3};
        },
        [&](int i) { out[i] = from + i; });
  }

  // The positions of candidates from `begin` on, whose lower bits tell them apart.
  __device__ __forceinline__ int write_window(int begin, int32_t* out) const {
    const int all = (min(recent - begin, kWindow) + 31) / 32, each = (all + kThreads - 1) / kThreads;
    const int from = min(thread() * each, all), to = min(from + each, all);
    int count = 0;
#pragma unroll 1
    for (int i = from; i < to; ++i) count += __popc(word_of(begin, i));
    int total;
    const int before = block_exclusive_sum<kThreads>(count, scan, total);
    for (int base = 0; base < total; base += kPlaces) {
      if (total <= kPlaces)
        gather<false>(begin, from, to, before);
      else
        gather<true>(begin, from, to, before - base);
      __syncthreads();
      for_each_place(
          out + base, min(kPlaces, total - base),
          [&](int i) {
            const uint2 four = *reinterpret_cast<const uint2*>(gathered + i);
            *reinterpret_cast<int4*>(out + base + i) =
                int4{begin + static_cast<int>(four.x & 0xffffu), begin + static_cast<int>(four.x >> 16),
                     begin + static_cast<int>(four.y & 0xffffu), begin + static_cast<int>(four.y >> 16)};
          },
          [&](int i) { out[base + i] = begin + gathered[i]; });
      __syncthreads();
    }
    return total;
  }

  // The chosen candidates of a word.
  __device__ __forceinline__ uint32_t word_of(int begin, int i) const {
    const int at = begin + 32 * i;
    uint32_t word = words[at / 32];
    if (at < first || at + 32 > recent) word &= bits_between(at, first, recent);
    return word;
  }

  // Puts the positions of words from `from` to `to` at their places, the first one's is `at`.
  template <bool kChecked>
  __device__ __forceinline__ void gather(int begin, int from, int to, int at) const {
#pragma unroll 1
    for (int i = from; i < to; ++i) {
      uint32_t word = word_of(begin, i);
      at += __popc(word);
      uint16_t* place = gathered + at;
      while (word != 0) {  // from the highest one down
        const int bit = 31 - __clz(word);
        word ^= 1u << bit;
        --place;
        if (!kChecked || (place >= gathered && place < gathered + kPlaces))
          *place = static_cast<uint16_t>(32 * i + bit);
      }
    }
  }
};

}  // namespace gsa::fused_select
