// Device side of index_select's decode kernel, last third: from a part's scores, kept on the chip, to the
// row's exact top k. The parts of a row meet at barriers in global memory; see docs/kernels/decode.md.
#pragma once

#include "gsa/cuda/grid.h"
#include "gsa/ops/indexer/index_select_decode_state.cuh"

namespace gsa::decode {

// Scores as integers of the same order.
__device__ __forceinline__ unsigned ordered(float score) {
  const unsigned bits = __float_as_uint(score + 0.0f);  // -0 equals +0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float unordered(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// A score in the units of round 0's bins. Monotone in the score, so a bin holds an interval of scores.
__device__ __forceinline__ float bin_of(float2 bins, float score) {
  return (score - bins.x) * bins.y;
}
__device__ __forceinline__ int clamp_bin(float x) {
  return min(max(__float2int_rz(x), 0), kBins - 1);
}

// Higher scores first, then lower positions.
__device__ __forceinline__ unsigned long long composite(unsigned key, int position) {
  return static_cast<unsigned long long>(key) << 32 | (0xffffffffu - static_cast<unsigned>(position));
}

// Keys that the query gets whatever their scores, and keys it may see at all, as bits of 32 keys from `base`
// on.
struct Kept {
  int first, recent, position;  // the query's own

  __device__ static unsigned below(int count) {
    return count <= 0 ? 0 : count >= 32 ? 0xffffffffu : (1u << count) - 1;
  }
  __device__ unsigned seen(int base, int end) const { return below(min(end, position + 1) - base); }
  __device__ unsigned bits(int base, int end) const {
    return (below(first - base) | ~below(position + 1 - recent - base)) & seen(base, end);
  }
};

// All parts of the row have come this far, and what they wrote is visible. `arrivals` counts its calls. When
// the CTA's threads are here, one calls `publish` and waits for the other parts; the other warps call
// `meanwhile`.
template <typename Publish, typename Meanwhile>
__device__ __forceinline__ void row_barrier(unsigned* counter, int splits, int& arrivals, Publish&& publish,
                                            Meanwhile&& meanwhile) {
  ++arrivals;
  __syncthreads();
  if (threadIdx.x == 0) {
    publish();
    cuda::arrive_release(counter);
    cuda::wait_acquire(counter, static_cast<unsigned>(arrivals * splits));
  } else if (threadIdx.x >= 32) {
    meanwhile();
  }
  __syncthreads();
}

template <typename T>
__device__ __forceinline__ T warp_total(T x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

__device__ __forceinline__ float warp_peak(float x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

// A thread's share of a histogram: four bins, the highest ones for thread 0.
constexpr int kBinsEach = kBins / kThreads;
static_assert(kBinsEach == 4);
__device__ __forceinline__ int first_bin() {
  return kBins - kBinsEach * (static_cast<int>(threadIdx.x) + 1);
}
__device__ __forceinline__ uint4 load_bins(const unsigned* histogram) {
  return __ldcg(reinterpret_cast<const uint4*>(histogram + first_bin()));
}

// Finds the bin that holds the wanted-th highest key: takes the keys of the bins above it from `wanted`.
// Where there are no more keys than wanted, everything is selected.
__device__ inline void find_bin(uint4 share, Shared& shared, Search& search) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const unsigned bins[kBinsEach] = {share.x, share.y, share.z, share.w};
  const unsigned mine = bins[0] + bins[1] + bins[2] + bins[3];
  unsigned sum = mine;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  const unsigned wanted = search.wanted;
  if (lane == 31) shared.warp_total[warp] = sum;
  __syncthreads();
  unsigned above = sum - mine, total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) above += shared.warp_total[w];
    total += shared.warp_total[w];
  }
  if (total <= wanted) {
    if (threadIdx.x == 0) {
      search.count += static_cast<int>(total) - static_cast<int>(wanted);
      search.mode = Mode::kAll;
    }
  } else if (above < wanted && wanted <= above + mine) {
    bool found = false;
#pragma unroll
    for (int i = kBinsEach - 1; i >= 0; --i) {
      if (!found && above + bins[i] >= wanted) {
        found = true;
        search.bin = first_bin() + i;
        search.wanted = wanted - above;
        search.candidates = bins[i];
        search.mode = bins[i] <= kCandidates ? Mode::kList : Mode::kBin;
      }
      above += bins[i];
    }
  }
  __syncthreads();
}

// A query's scores in the part, 32 at a time. When the bins of the boundary are known, a word of scores gives
// way to two words of bits in two of its places: the selected keys' and the tied ones'. The place changes
// with the word, so that neighbouring words lie in different banks.
struct Words {
  float* scores;

  __device__ unsigned* selected(int word) const {
    return reinterpret_cast<unsigned*>(scores) + word * 32 + (word & 31);
  }
  __device__ unsigned* tied(int word) const {
    return reinterpret_cast<unsigned*>(scores) + word * 32 + ((word + 16) & 31);
  }
};

__device__ __forceinline__ void list_candidate(const Workspace& ws, int row, float score, int at) {
  ws.list[static_cast<size_t>(row) * kCandidates + atomicAdd(ws.list_count + row, 1u)] =
      composite(ordered(score), at);
}

// What a score is in a round: above the boundary bin, in it, or neither (NaN too).
struct Class {
  bool above, equal;
};

// Sorts the part's keys by classify(score), a word a thread. Counts them, lists the candidates where they are
// few enough (kList), notes the interval they span where not (kBin), and unless the search goes on (kBin)
// replaces the scores by bits.
template <typename Classify>
__device__ __forceinline__ void mark(const Workspace& ws, Shared& shared, Words words, int query, int row,
                                     Kept kept, Classify&& classify) {
  const Part part = shared.part;
  const Mode mode = shared.search[query].mode;
  const int lane = threadIdx.x & 31, size = part.end - part.begin;
  unsigned selected = 0, tied = 0, low = 0, high = 0;
  for (int word = threadIdx.x; word * 32 < size; word += kThreads) {
    const float4* scores = reinterpret_cast<const float4*>(words.scores) + word * 8;
    unsigned above = 0, equal = 0;
#pragma unroll 4
    for (int i = 0; i < 8; ++i) {
      const int place = (i + lane) % 8;  // neighbouring lanes read different banks
      const float4 four = scores[place];
      const float score[] = {four.x, four.y, four.z, four.w};
      unsigned above_four = 0, equal_four = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Class found = classify(score[j]);
        if (found.above) above_four |= 1u << j;
        if (found.equal) equal_four |= 1u << j;
      }
      above |= above_four << place * 4;
      equal |= equal_four << place * 4;
    }
    const int base = part.begin + word * 32;
    const unsigned kept_bits = kept.bits(base, part.end), seen = kept.seen(base, part.end);
    above = (above & seen) | kept_bits;
    equal &= seen & ~kept_bits;
    selected += __popc(above);
    tied += __popc(equal);
    for (unsigned bits = equal; bits; bits &= bits - 1) {
      const int at = __ffs(bits) - 1;
      const float score = words.scores[word * 32 + at];
      const unsigned key = ordered(score);
      low = max(low, ~key);
      high = max(high, key);
      if (mode == Mode::kList) list_candidate(ws, row, score, base + at);
    }
    if (mode == Mode::kBin) continue;
    *words.selected(word) = above;
    *words.tied(word) = equal;
  }
  selected = __reduce_add_sync(0xffffffffu, selected);
  tied = __reduce_add_sync(0xffffffffu, tied);
  low = __reduce_max_sync(0xffffffffu, low);
  high = __reduce_max_sync(0xffffffffu, high);
  if (lane != 0) return;
  Tally& tally = shared.tally[query];
  atomicAdd(&tally.selected, selected);
  if (tied == 0) return;
  atomicAdd(&tally.tied, tied);
  atomicMax(&tally.low, low);
  atomicMax(&tally.high, high);
}

// Round 0: by the bins of the histogram.
__device__ inline void mark_first(const Workspace& ws, Shared& shared, Words words, int query, int row,
                                  Kept kept) {
  const Mode mode = shared.search[query].mode;
  const int bin = shared.search[query].bin;
  const float2 bins = shared.bins[query];
  // Bins lower <= x < upper are the boundary; nothing is at or above NaN, everything but NaN above -inf.
  const bool open = mode == Mode::kAll || mode == Mode::kNone;
  const float upper = mode == Mode::kAll         ? -INFINITY
                      : open || bin == kBins - 1 ? NAN
                                                 : static_cast<float>(bin + 1);
  const float lower = open ? NAN : bin == 0 ? -INFINITY : static_cast<float>(bin);
  mark(ws, shared, words, query, row, kept, [&](float score) {
    const float x = bin_of(bins, score);
    return Class{x >= upper, !(x >= upper) && x >= lower};
  });
}

// Later rounds: by the integer bins of the interval [key_low, key_high].
__device__ __noinline__ inline void mark_later(const Workspace& ws, Shared& shared, Words words, int query,
                                               int row, Kept kept) {
  const Search search = shared.search[query];
  mark(ws, shared, words, query, row, kept, [&](float score) {
    const unsigned key = ordered(score);
    if (score != score || key < search.key_low) return Class{false, false};
    if (key > search.key_high) return Class{true, false};
    const unsigned bin = (key - search.key_low) >> search.shift;
    return Class{bin > search.bin, bin == search.bin};
  });
}

// One thread tells the other parts what collect counted.
__device__ inline void publish_tally(const Workspace& ws, Shared& shared, int query, int row, int round,
                                     int tokens) {
  Slot& slot = ws.slots[static_cast<size_t>(blockIdx.x) * tokens + query];
  const Tally tally = shared.tally[query];
  slot.selected = tally.selected;
  slot.tied = tally.tied;
  shared.tally[query] = {};
  if (shared.search[query].mode != Mode::kBin || tally.tied == 0) return;
  unsigned* bounds = ws.bounds + (static_cast<size_t>(row) * kRounds + round) * 2;
  atomicMax(bounds, tally.low);
  atomicMax(bounds + 1, tally.high);
}

// Where this part's first selected key goes, and how many of its tied keys are selected.
struct Placement {
  int offset, tied_quota;
};

// Ranks the candidates, if they are listed: the `wanted` largest are selected, those of this part get their
// bits. Then adds up what the parts before this one selected.
__device__ inline Placement place(const Workspace& ws, Shared& shared, const Search& search, Words words,
                                  int query, int row, int tokens) {
  const Part part = shared.part;
  const unsigned count = search.mode == Mode::kList ? search.candidates : 0;
  unsigned selected = 0, tied = 0;
  unsigned long long mine = 0;
  if (threadIdx.x < count) mine = __ldcg(ws.list + static_cast<size_t>(row) * kCandidates + threadIdx.x);
  for (int r = threadIdx.x; r < part.rank; r += kThreads) {
    const Slot* slot = ws.slots + static_cast<size_t>(blockIdx.x - part.rank + r) * tokens + query;
    selected += __ldcg(&slot->selected);
    tied += __ldcg(&slot->tied);
  }
  if (threadIdx.x == 0) shared.before = shared.tied_before = 0;
  if (threadIdx.x < count) shared.list[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x < count) {
    int greater = 0;
#pragma unroll 8
    for (unsigned i = 0; i < count; ++i) greater += shared.list[i] > mine;
    const auto at = static_cast<int>(0xffffffffu - static_cast<unsigned>(mine));
    const bool chosen = greater < search.wanted;
    selected += chosen && at < part.begin;
    if (chosen && at >= part.begin && at < part.end)
      atomicOr(words.selected((at - part.begin) / 32), 1u << (at - part.begin) % 32);
  }
  selected = __reduce_add_sync(0xffffffffu, selected);
  tied = __reduce_add_sync(0xffffffffu, tied);
  if ((threadIdx.x & 31) == 0 && (selected || tied)) {
    atomicAdd(&shared.before, selected);
    atomicAdd(&shared.tied_before, tied);
  }
  __syncthreads();
  Placement placement{static_cast<int>(shared.before), 0};
  if (search.mode == Mode::kTied) {
    const int taken = min(static_cast<int>(shared.tied_before), search.wanted);
    placement.offset += taken;
    placement.tied_quota = search.wanted - taken;
  }
  return placement;
}

// Sums over the threads before this one, of two counts.
__device__ inline int2 exclusive_sum(Shared& shared, int a, int b) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  int x = a, y = b;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other_x = __shfl_up_sync(0xffffffffu, x, offset),
              other_y = __shfl_up_sync(0xffffffffu, y, offset);
    if (lane >= offset) {
      x += other_x;
      y += other_y;
    }
  }
  if (lane == 31) {
    shared.warp_total[warp] = x;
    shared.warp_tied[warp] = y;
  }
  __syncthreads();
  x -= a;
  y -= b;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w >= warp) break;
    x += shared.warp_total[w];
    y += shared.warp_tied[w];
  }
  return make_int2(x, y);
}

// Writes the positions whose bits are set, in ascending order, and of the tied ones the first tied_quota. A
// thread owns a run of words.
__device__ inline void emit_selected(Shared& shared, Words words, bool ties, Placement placement,
                                     int* indices) {
  const Part part = shared.part;
  const int count = (part.end - part.begin + 31) / 32, each = (count + kThreads - 1) / kThreads;
  const int first = min(static_cast<int>(threadIdx.x) * each, count), last = min(first + each, count);
  int selected = 0, tied = 0;
#pragma unroll 1  // two words a thread, seldom more
  for (int word = first; word < last; ++word) {
    selected += __popc(*words.selected(word));
    if (ties) tied += __popc(*words.tied(word));
  }
  const int2 sum = exclusive_sum(shared, selected, tied);
  int out = placement.offset + sum.x + min(sum.y, placement.tied_quota);
  int quota = max(placement.tied_quota - sum.y, 0);
#pragma unroll 1
  for (int word = first; word < last; ++word) {
    unsigned bits = *words.selected(word);
    if (ties) {
      for (unsigned equal = *words.tied(word); equal && quota; equal &= equal - 1, --quota)
        bits |= equal & -equal;
    }
    for (; bits; bits &= bits - 1) indices[out++] = part.begin + word * 32 + __ffs(bits) - 1;
  }
  __syncthreads();
}

}  // namespace gsa::decode
