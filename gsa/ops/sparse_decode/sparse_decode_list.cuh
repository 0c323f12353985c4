// The fused decode kernel's list of tokens: which of its keys a part attends to for sure and which may be
// among the last ones chosen, as soon as the boundary bin is known.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_decode_place.cuh"
#include "gsa/ops/sparse_decode/sparse_decode_score.cuh"

namespace gsa::sparse_decode {

constexpr int kFewWords = 64;  // that one warp lists, and whose tokens do not come by the copy engine

// Tokens kept whatever their scores, dealt one by one to the row's parts; where all are, `length` of them.
struct KeptTokens {
  int first, recent_begin, count;

  __device__ KeptTokens(const IndexSelectDecodeParams& p, int length)
      : first(p.keep_first),
        recent_begin(length - p.keep_recent - p.keep_first),
        count(p.keep_first + p.keep_recent) {
    if (count < length) return;
    first = count = length;
  }
  __device__ int of_part(const Share& share) const {
    return (count - share.rank + share.splits - 1) / share.splits;
  }
  __device__ int position(int i) const { return i < first ? i : recent_begin + i; }
};

// Bins lower <= x < upper are the boundary; and of these what lies in [low, high], as composites, where it
// had very many keys.
struct Bounds {
  float upper, lower;
  unsigned long long low = 0, high = ~0ull;

  __device__ explicit Bounds(const Search& search) {
    const Mode mode = search.mode;
    const auto bin = static_cast<int>(search.bin);
    const bool open = mode == Mode::kAll || mode == Mode::kNone;
    upper = mode == Mode::kAll ? -INFINITY : open || bin == kBins - 1 ? NAN : static_cast<float>(bin + 1);
    lower = open ? NAN : bin == 0 ? -INFINITY : static_cast<float>(bin);
  }
  // `x` is the bin of `score`.
  __device__ __forceinline__ Class classify(float x, float score, int position) const {
    Class found{x >= upper, !(x >= upper) && x >= lower};
    if (found.equal && (low != 0 || high != ~0ull)) {
      const unsigned long long own = composite(ordered(score), position);
      found = {own > high, own >= low && own <= high};
    }
    return found;
  }
};

// Each word's bits above the boundary and in it; `push` is called with the latter's keys and positions.
template <typename Push>
__device__ __forceinline__ void mark_words(const Share& share, const float* scores, float2 bins,
                                           const Bounds& bounds, unsigned* above_bits, unsigned* equal_bits,
                                           Push&& push) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
  if (share.words <= kFewWords) {
    for (int word = warp; word < share.words; word += kWarps) {
      const float score = scores[word * kWord + lane], x = bin_of(bins, score);
      const Class found = bounds.classify(x, score, share.base(word) + lane);
      const unsigned above_word = __ballot_sync(0xffffffffu, found.above);
      const unsigned equal_word = __ballot_sync(0xffffffffu, found.equal);
      if (lane == 0) {
        above_bits[word] = above_word;
        equal_bits[word] = equal_word;
      }
      if (found.equal) push(ordered(score), share.base(word) + lane);
    }
    return;
  }
  for (int word = threadIdx.x; word < share.words; word += kThreads) {
    const float4* four = reinterpret_cast<const float4*>(scores) + word * 8;
    unsigned above_word = 0, equal_word = 0;
#pragma unroll 4
    for (int i = 0; i < 8; ++i) {
      const int place = (i + lane) % 8;  // neighbouring lanes read different banks
      const float4 found = four[place];
      const float score[] = {found.x, found.y, found.z, found.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const Class of_score =
            bounds.classify(bin_of(bins, score[j]), score[j], share.base(word) + place * 4 + j);
        if (of_score.above) above_word |= 1u << (place * 4 + j);
        if (of_score.equal) equal_word |= 1u << (place * 4 + j);
      }
    }
    above_bits[word] = above_word;
    equal_bits[word] = equal_word;
    for (unsigned own = equal_word; own; own &= own - 1) {
      const int at = __ffs(own) - 1;
      push(ordered(scores[word * kWord + at]), share.base(word) + at);
    }
  }
}

// Where in a list the tokens of few words go: counts of the bits in the lane's words and before them.
struct FewWords {
  int first, last, above, equal, above_before, equal_before, above_total, equal_total;

  __device__ FewWords(const Share& share, const unsigned* above_bits, const unsigned* equal_bits) {
    const int lane = threadIdx.x & 31;
    const int each = (share.words + 31) / 32;
    first = min(lane * each, share.words);
    last = min(first + each, share.words);
    above = equal = 0;
    for (int word = first; word < last; ++word) {
      above += __popc(above_bits[word]);
      equal += __popc(equal_bits[word]);
    }
    int both = above | equal << 16;  // neither has more than 2,048
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, both, offset);
      if (lane >= offset) both += other;
    }
    const int total = __shfl_sync(0xffffffffu, both, 31);
    above_before = (both & 0xffff) - above;
    equal_before = (both >> 16) - equal;
    above_total = total & 0xffff;
    equal_total = total >> 16;
  }
};

// Writes the tokens of words first .. last - 1: those above from place `sure` on, the others behind `tied`
// candidates.
__device__ __forceinline__ void emit_words(const Share& share, const float* scores,
                                           const unsigned* above_bits, const unsigned* equal_bits, int first,
                                           int last, int sure, int tied, const List& list) {
#pragma unroll 1
  for (int word = first; word < last; ++word) {
    const int base = share.base(word);
    for (unsigned bits = above_bits[word]; bits; bits &= bits - 1)
      list.positions[sure++] = base + __ffs(bits) - 1;
    for (unsigned bits = equal_bits[word]; bits; bits &= bits - 1, ++tied) {
      const int at = __ffs(bits) - 1;
      list.positions[list.sure + tied] = base + at;
      list.keys[tied] = ordered(scores[word * kWord + at]);
    }
  }
}

// Of many words, a thread's run of them: counts of their bits, and of those before them. The block's totals
// are in shared.sure_total and shared.equal_total.
struct ManyWords {
  int first, last, above, equal, above_before, equal_before;

  __device__ ManyWords(State& shared, const Share& share, const unsigned* above_bits,
                       const unsigned* equal_bits) {
    const int each = (share.words + kThreads - 1) / kThreads;
    first = min(static_cast<int>(threadIdx.x) * each, share.words);
    last = min(first + each, share.words);
    above = equal = 0;
#pragma unroll 1
    for (int word = first; word < last; ++word) {
      above += __popc(above_bits[word]);
      equal += __popc(equal_bits[word]);
    }
    const int2 sum = exclusive_sum(shared, above, equal, false);
    above_before = sum.x;
    equal_before = sum.y;
    if (threadIdx.x == kThreads - 1) {
      shared.sure_total = sum.x + above;
      shared.equal_total = sum.y + equal;
    }
    __syncthreads();
  }
};

__device__ __forceinline__ void list_kept(const KeptTokens& kept, const Share& share, int threads,
                                          const List& list) {
  for (int i = threadIdx.x; i < kept.of_part(share); i += threads)
    list.positions[i] = kept.position(share.rank + i * share.splits);
}

// The list, in a fixed order. Of few words one warp makes it.
__device__ inline void make_list(State& shared, const KeptTokens& kept, const Share& share,
                                 const float* scores, const unsigned* above_bits, const unsigned* equal_bits,
                                 List& list) {
  const int own = kept.of_part(share);
  if (share.words <= kFewWords) {
    if (threadIdx.x < 32) {
      const FewWords few(share, above_bits, equal_bits);
      list.sure = own + few.above_total;
      list_kept(kept, share, 32, list);
      emit_words(share, scores, above_bits, equal_bits, few.first, few.last, own + few.above_before,
                 few.equal_before, list);
      if (threadIdx.x == 0) {
        shared.sure_total = few.above_total;
        shared.equal_total = few.equal_total;
      }
    }
  } else {
    const ManyWords many(shared, share, above_bits, equal_bits);
    list.sure = own + shared.sure_total;
    list_kept(kept, share, kThreads, list);
    emit_words(share, scores, above_bits, equal_bits, many.first, many.last, own + many.above_before,
               many.equal_before, list);
    cuda::fence_async_proxy();  // the copy engine may write where scores were
  }
  __syncthreads();
  list.sure = own + shared.sure_total;
  list.entries = list.sure + shared.equal_total;
}

// By the last slot's warps: which of the candidates are the `wanted` best, when all parts have told of
// theirs. They meet at an mbarrier: racecheck loses count of a barrier that the other slots do not have.
__device__ inline void rank_candidates(State& shared, const unsigned long long* from) {
  const int thread = threadIdx.x % (kGroups * 32);
  const auto count = static_cast<int>(shared.search[0].candidates);
  for (int i = thread; i < count; i += kGroups * 32) shared.list[i] = wait_candidate(from + i);
  cuda::mbarrier_arrive(&shared.listed);
  cuda::mbarrier_wait(&shared.listed, 0);
  for (int i = thread; i < count; i += kGroups * 32) {
    const unsigned long long mine = shared.list[i];
    int greater = 0;
#pragma unroll 8
    for (int j = 0; j < count; ++j) greater += shared.list[j] > mine;
    if (greater != shared.search[0].wanted - 1) continue;
    shared.threshold = mine;
    cuda::mbarrier_arrive(&shared.ranked);
  }
}

}  // namespace gsa::sparse_decode
