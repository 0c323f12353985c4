// Device side of index_select's decode kernel, second third: from a part's scores, kept on the chip, to bits
// of what is selected for sure, and what the row's other parts have to know; see docs/kernels/decode.md.
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
  // How many of the keys from `begin` to `end` are chosen by their scores.
  __device__ unsigned others(int begin, int end) const {
    return max(min(end, position + 1 - recent) - max(begin, first), 0);
  }
  __device__ unsigned seen(int base, int end) const { return below(min(end, position + 1) - base); }
  __device__ unsigned bits(int base, int end) const {
    return (below(first - base) | ~below(position + 1 - recent - base)) & seen(base, end);
  }
};

// All parts of the row have come this far, and if kOrdered what they wrote is visible. `arrivals` counts its
// calls. When the CTA's threads are here, one calls `publish` (which need not come before the parts' meeting,
// unless kOrdered) and waits for the other parts; the other warps call `meanwhile`.
template <bool kOrdered, typename Publish, typename Meanwhile>
__device__ __forceinline__ void row_barrier(unsigned* counter, int splits, int& arrivals, Publish&& publish,
                                            Meanwhile&& meanwhile) {
  ++arrivals;
  __syncthreads();
  if (threadIdx.x == 0) {
    const auto target = static_cast<unsigned>(arrivals * splits);
    if constexpr (kOrdered) {
      publish();
      cuda::arrive_release(counter);
      cuda::wait_acquire(counter, target);
    } else {  // without the time that fences take
      atomicAdd(counter, 1u);
      publish();
      while (cuda::load_relaxed(counter) < target) cuda::poll_again();
    }
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

// Finds the bin that holds the wanted-th highest key: takes the keys of the bins above it from `wanted`.
// Where there are no more keys than wanted, everything is selected. The histogram is complete when its counts
// add up to `expected`, with those that are missing (if any can be): nothing else need be waited for.
__device__ inline void find_bin(const unsigned* histogram, const unsigned* missing, unsigned expected,
                                Shared& shared, Search& search) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  const unsigned wanted = search.wanted;
  const bool searching = search.mode == Mode::kBin;
  unsigned bins[kBinsEach], mine, above, total;
  for (;;) {
    const uint4 share = cuda::load_relaxed(reinterpret_cast<const uint4*>(histogram + first_bin()));
    const unsigned absent = missing && threadIdx.x == 0 ? cuda::load_relaxed(missing) : 0;
    bins[0] = share.x;
    bins[1] = share.y;
    bins[2] = share.z;
    bins[3] = share.w;
    mine = bins[0] + bins[1] + bins[2] + bins[3];
    unsigned sum = mine;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const unsigned other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    if (lane == 31) shared.warp_total[warp] = sum;
    if (threadIdx.x == 0) shared.absent = absent;
    __syncthreads();
    const unsigned of_warp = lane < kWarps ? shared.warp_total[lane] : 0;
    above = sum - mine + __reduce_add_sync(0xffffffffu, lane < warp ? of_warp : 0);
    total = __reduce_add_sync(0xffffffffu, of_warp);
    if (total + shared.absent == expected) break;
    __syncthreads();
    cuda::poll_again();
  }
  if (searching && total <= wanted) {
    if (threadIdx.x == 0) {
      search.count += static_cast<int>(total) - static_cast<int>(wanted);
      search.mode = Mode::kAll;
    }
  } else if (searching && above < wanted && wanted <= above + mine) {
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

__device__ __forceinline__ Record* record_of(const Workspace& ws, int cta, int query, int tokens) {
  return ws.records + static_cast<size_t>(cta) * tokens + query;
}

// Tells the row's other parts of a candidate: in this part's record, or behind those of all others.
__device__ __forceinline__ void list_candidate(const Workspace& ws, Shared& shared, int query, int tokens,
                                               int row, unsigned long long candidate) {
  const unsigned at = atomicAdd(shared.listed + query, 1u);
  cuda::store_relaxed(at < Record::kCandidates ? record_of(ws, blockIdx.x, query, tokens)->candidates + at
                                               : ws.list + static_cast<size_t>(row) * kCandidates +
                                                     atomicAdd(ws.list_count + row, 1u),
                      candidate);
}

// What a score is in a round: above the boundary bin, in it, or neither (NaN too).
struct Class {
  bool above, equal;
};

// What a thread does with a word's bits, once they are known: `own` are those whose scores it looks at.
template <typename Score>
__device__ __forceinline__ void note_tied(const Workspace& ws, Shared& shared, Mode mode, int query,
                                          int tokens, int row, unsigned own, int base, Tally& mine,
                                          Score&& score_of) {
  for (; own; own &= own - 1) {
    const int at = __ffs(own) - 1;
    const unsigned key = ordered(score_of(at));
    mine.low = max(mine.low, ~key);
    mine.high = max(mine.high, key);
    if (mode == Mode::kList) list_candidate(ws, shared, query, tokens, row, composite(key, base + at));
  }
}

// Sorts the part's keys by classify(score). Counts them, lists the candidates where they are few enough
// (kList), notes the interval they span where not (kBin), and unless the search goes on (kBin) replaces the
// scores by bits.
template <typename Classify>
__device__ __forceinline__ void mark(const Workspace& ws, Shared& shared, Words words, int query, int tokens,
                                     int row, Kept kept, Classify&& classify) {
  const Part part = shared.part;
  const Mode mode = shared.search[query].mode;
  const int lane = threadIdx.x & 31, size = part.end - part.begin;
  const auto classify_four = [&](const float4& four, unsigned& above, unsigned& equal) {
    const float score[] = {four.x, four.y, four.z, four.w};
    above = equal = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const Class found = classify(score[j]);
      if (found.above) above |= 1u << j;
      if (found.equal) equal |= 1u << j;
    }
  };
  const auto settle = [&](int word, unsigned& above, unsigned& equal) {  // by position
    const int base = part.begin + word * 32;
    const unsigned kept_bits = kept.bits(base, part.end), seen = kept.seen(base, part.end);
    above = (above & seen) | kept_bits;
    equal &= seen & ~kept_bits;
  };
  Tally mine{};
  if (size <= kThreads * 4) {                                        // a word has eight threads
    if ((static_cast<int>(threadIdx.x) - lane) * 4 >= size) return;  // a warp without scores
    const int word = static_cast<int>(threadIdx.x) / 8, shift = lane % 8 * 4;
    const bool there = word * 32 < size;
    const float4 four =
        there ? reinterpret_cast<const float4*>(words.scores)[threadIdx.x] : make_float4(NAN, NAN, NAN, NAN);
    unsigned above, equal;
    classify_four(four, above, equal);
    above <<= shift;
    equal <<= shift;
#pragma unroll
    for (int offset = 1; offset < 8; offset *= 2) {
      above |= __shfl_xor_sync(0xffffffffu, above, offset);
      equal |= __shfl_xor_sync(0xffffffffu, equal, offset);
    }
    settle(word, above, equal);
    __syncwarp();  // the word's scores are read: bits take their place
    if (there) {
      note_tied(ws, shared, mode, query, tokens, row, equal & 15u << shift, part.begin + word * 32, mine,
                [&](int at) {
                  return at % 4 == 0 ? four.x : at % 4 == 1 ? four.y : at % 4 == 2 ? four.z : four.w;
                });
      if (shift == 0) {
        mine.selected = __popc(above);
        mine.tied = __popc(equal);
        if (mode != Mode::kBin) {
          *words.selected(word) = above;
          *words.tied(word) = equal;
        }
      }
    }
  } else {
    for (int word = threadIdx.x; word * 32 < size; word += kThreads) {
      const float4* scores = reinterpret_cast<const float4*>(words.scores) + word * 8;
      unsigned above = 0, equal = 0;
#pragma unroll 4
      for (int i = 0; i < 8; ++i) {
        const int place = (i + lane) % 8;  // neighbouring lanes read different banks
        unsigned above_four, equal_four;
        classify_four(scores[place], above_four, equal_four);
        above |= above_four << place * 4;
        equal |= equal_four << place * 4;
      }
      settle(word, above, equal);
      mine.selected += __popc(above);
      mine.tied += __popc(equal);
      note_tied(ws, shared, mode, query, tokens, row, equal, part.begin + word * 32, mine,
                [&](int at) { return words.scores[word * 32 + at]; });
      if (mode == Mode::kBin) continue;
      *words.selected(word) = above;
      *words.tied(word) = equal;
    }
  }
  mine.selected = __reduce_add_sync(0xffffffffu, mine.selected);
  mine.tied = __reduce_add_sync(0xffffffffu, mine.tied);
  if (mine.tied > 0) {
    mine.low = __reduce_max_sync(0xffffffffu, mine.low);
    mine.high = __reduce_max_sync(0xffffffffu, mine.high);
  }
  if (lane != 0) return;
  Tally& tally = shared.tally[query];
  if (mine.selected > 0) atomicAdd(&tally.selected, mine.selected);
  if (mine.tied == 0) return;
  atomicAdd(&tally.tied, mine.tied);
  atomicMax(&tally.low, mine.low);
  atomicMax(&tally.high, mine.high);
}

// Round 0: by the bins of the histogram.
__device__ inline void mark_first(const Workspace& ws, Shared& shared, Words words, int query, int tokens,
                                  int row, Kept kept) {
  const Mode mode = shared.search[query].mode;
  const int bin = shared.search[query].bin;
  const float2 bins = shared.bins[query];
  // Bins lower <= x < upper are the boundary; nothing is at or above NaN, everything but NaN above -inf.
  const bool open = mode == Mode::kAll || mode == Mode::kNone;
  const float upper = mode == Mode::kAll         ? -INFINITY
                      : open || bin == kBins - 1 ? NAN
                                                 : static_cast<float>(bin + 1);
  const float lower = open ? NAN : bin == 0 ? -INFINITY : static_cast<float>(bin);
  mark(ws, shared, words, query, tokens, row, kept, [&](float score) {
    const float x = bin_of(bins, score);
    return Class{x >= upper, !(x >= upper) && x >= lower};
  });
}

// Later rounds: by the integer bins of the interval [key_low, key_high].
__device__ __noinline__ inline void mark_later(const Workspace& ws, Shared& shared, Words words, int query,
                                               int tokens, int row, Kept kept) {
  const Search search = shared.search[query];
  mark(ws, shared, words, query, tokens, row, kept, [&](float score) {
    const unsigned key = ordered(score);
    if (score != score || key < search.key_low) return Class{false, false};
    if (key > search.key_high) return Class{true, false};
    const unsigned bin = (key - search.key_low) >> search.shift;
    return Class{bin > search.bin, bin == search.bin};
  });
}

// One thread tells the other parts what mark counted: the last thing that they wait for, or where the search
// goes on the interval that the candidates span.
__device__ inline void publish_tally(const Workspace& ws, Shared& shared, int query, int row, int round,
                                     int tokens) {
  const Tally tally = shared.tally[query];
  if (shared.search[query].mode != Mode::kBin) {
    cuda::store_relaxed(&record_of(ws, blockIdx.x, query, tokens)->header,
                        made_header(tally.selected, tally.tied));
    return;
  }
  shared.tally[query] = {};
  if (tally.tied == 0) return;
  unsigned* bounds = ws.bounds + (static_cast<size_t>(row) * kRounds + round) * 2;
  atomicMax(bounds, tally.low);
  atomicMax(bounds + 1, tally.high);
}

}  // namespace gsa::decode
