// A row of stored scores and the thread block that selects from it (docs/kernels/index_select.md,
// "Stored scores").
//
// The block goes over a row's scores twice: for the sums of the variance, and with it the budget, and a
// histogram whose scale comes from a sample; then for the bits of who lies above the bin with the cut. That
// bin's entries are ranked. Last the bits become positions.
#pragma once

#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_block.h"
#include "gsa/ops/indexer/index_select_positions.h"
#include "gsa/ops/indexer/index_select_row.h"
#include "gsa/ops/indexer/index_select_stage.h"

namespace gsa::fused_select {

constexpr int kRowBins = 1024;  // and one for what lies above them
constexpr int kRanked = 512;    // entries of the bin with the cut that are ranked

template <int kThreads>
struct alignas(16) StoredRowScratch {
  union {
    uint32_t bins[kRowBins + 1];
    uint2 near[kRanked];  // of the bin with the cut: (score, position), when the histogram is done with
    BlockScratch<kThreads, 512> radix;
    uint16_t gathered[kPlaces];
  };
  int scan[kThreads / 32];
  float sums[2][kThreads / 32];
  int counts[2][kThreads / 32];
  Digit found;
  int near_count;
  float kth;
};

// Bins of a row's histogram, linear. The lowest takes what lies below and NaN, the highest what lies above.
struct ScoreBins {
  float scale;
  float offset;

  // The bin as the lowest bits of a float without a fraction.
  __device__ __forceinline__ uint32_t bits(float score) const {
    constexpr float kOnes = 1 << 23;
    return __float_as_uint(__fmaf_rd(__saturatef(fmaf(score, scale, offset)), kRowBins, kOnes));
  }
  static constexpr uint32_t kFirst = 0x4b000000;  // the bits of bin 0
};

// The bin of `bins` that holds the rank-th largest, by one warp; -1 where there are fewer.
__device__ __forceinline__ Digit find_bin(const uint32_t* bins, int rank) {
  const int lane = threadIdx.x & 31;
  int above = 0;
  for (int top = kRowBins - 1; top >= 0; top -= 32) {
    const int mine = bins[top - lane], all = __reduce_add_sync(kWarp, mine);
    if (above + all < rank) {
      above += all;
      continue;
    }
    const int before = above + cuda::warp_exclusive_sum(mine);
    const bool here = before < rank && rank <= before + mine;
    const int owner = __ffs(__ballot_sync(kWarp, here)) - 1;
    return {top - owner, rank - __shfl_sync(kWarp, before, owner), __shfl_sync(kWarp, mine, owner)};
  }
  return {-1, 0, 0};
}

template <int kThreads>
struct StoredRow {
  const float* scores;
  uint32_t* words;  // who is taken, a bit a position
  StoredRowScratch<kThreads>& scratch;
  int length;  // positions up to the query's
  int first;   // candidates lie from here on
  int recent;  // and before
  ScoreBins bins{};
  float shift = 0;     // near the scores, so that squares lose nothing
  float variance = 0;  // of all scores but NaN
  int usable = 0;      // candidates that may be chosen
  bool wild = false;   // has scores that are not finite

  static constexpr int kWarps = kThreads / 32;

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ __forceinline__ bool candidate(int position) const {
    return position >= first && position < recent;
  }

  // Calls visit(scores, position) for every four positions before `end`, a multiple of four; several loads
  // are in flight.
  template <class Visit>
  __device__ __forceinline__ void for_each_four(int end, Visit visit) const {
    constexpr int kFlight = 4;
    for (int base = 4 * thread(); base < end; base += 4 * kThreads * kFlight) {
      float4 s[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        const int i = base + 4 * kThreads * j;
        if (i < end) s[j] = *reinterpret_cast<const float4*>(scores + i);
      }
#pragma unroll
      for (int j = 0; j < kFlight; ++j) {
        const int i = base + 4 * kThreads * j;
        if (i < end) visit(s[j], i);
      }
    }
  }

  // Sums over the block, in a fixed order.
  __device__ __forceinline__ float2 add_up(float a, float b) {
    a = cuda::warp_sum(a);
    b = cuda::warp_sum(b);
    __syncthreads();  // all have read the sums before
    if (lane() == 0) {
      scratch.sums[0][warp()] = a;
      scratch.sums[1][warp()] = b;
    }
    __syncthreads();
    a = b = 0;
    for (int i = 0; i < kWarps; ++i) {
      a += scratch.sums[0][i];
      b += scratch.sums[1][i];
    }
    return {a, b};
  }

  // A sample of 128 scores or more tells where scores lie, roughly.
  __device__ __forceinline__ void sample() {
    for (int i = thread(); i <= kRowBins; i += kThreads) scratch.bins[i] = 0;
    constexpr int kEach = kThreads < 128 ? 128 / kThreads : 1, kAll = kEach * kThreads;
    const float origin = coarse(scores[0]);
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const float x = scores[int64_t{i * kThreads + thread()} * length / kAll] - origin;
      sum += x;
      squares = fmaf(x, x, squares);
    }
    const float2 sums = add_up(sum, squares);
    const float mean = sums.x / kAll, spread = sqrtf(fmaxf(sums.y / kAll - mean * mean, 0.0f));
    // So far from the mean that few scores lie outside, though mean and spread are rough.
    constexpr float kBelow = 4, kAbove = 7;
    shift = coarse(origin + mean);
    bins.scale = 1.0f / ((kBelow + kAbove) * spread);
    bins.offset = -(origin + mean - kBelow * spread) * bins.scale;
    __syncthreads();
  }

  // All scores: their sums, and the histogram.
  __device__ __forceinline__ void count() {
    float sum = 0, squares = 0;
    uint32_t zeros = 0;  // ReLU leaves many, which would wait for each other at their bin
    const auto enter = [&](float score) {
      const float x = score - shift;
      sum += x;
      squares = fmaf(x, x, squares);
      if (score == 0.0f)
        ++zeros;
      else
        atomicAdd(&scratch.bins[bins.bits(score) - ScoreBins::kFirst], 1u);
    };
    const int whole = length & ~3;
    for_each_four(whole, [&](float4 s, int) {
      enter(s.x);
      enter(s.y);
      enter(s.z);
      enter(s.w);
    });
    if (whole + thread() < length) enter(scores[whole + thread()]);
    if (zeros != 0) atomicAdd(&scratch.bins[bins.bits(0.0f) - ScoreBins::kFirst], zeros);
    // Kept positions are no candidates.
    const auto leave = [&](int position) {
      atomicSub(&scratch.bins[bins.bits(scores[position]) - ScoreBins::kFirst], 1u);
    };
    for (int i = thread(); i < first; i += kThreads) leave(i);
    for (int i = recent + thread(); i < length; i += kThreads) leave(i);
    const float2 sums = add_up(sum, squares);
    set_variance(sums, length);
    usable = max(0, recent - first);
    wild = !(sums.y < kInfinity);
    if (wild) count_wild();
    __syncthreads();
  }

  __device__ __forceinline__ void set_variance(float2 sums, int count) {
    const float n = static_cast<float>(max(count, 1)), mean = sums.x / n;
    variance = fmaxf(__fsub_rn(sums.y / n, __fmul_rn(mean, mean)), 0.0f);
  }

  // The sums of a row with scores that are not finite: NaN is left out, and neither NaN nor -inf can be
  // chosen.
  __device__ void count_wild() {
    float sum = 0, squares = 0;
    int numbers = 0, choices = 0;
    for (int i = thread(); i < length; i += kThreads) {
      const float s = scores[i];
      if (isnan(s)) continue;
      ++numbers;
      sum += s - shift;
      squares = fmaf(s - shift, s - shift, squares);
      choices += candidate(i) && s > -kInfinity;
    }
    const int2 counts = block_sums(numbers, choices, scratch.counts);
    set_variance(add_up(sum, squares), counts.x);
    usable = counts.y;
  }

  // Whether the best `need` candidates are all there are.
  __device__ __forceinline__ bool takes_all(int need) const {
    return need >= usable && !wild;
  }

  // Sets the bits of the best `need` candidates; those of kept positions and behind the row mean nothing.
  __device__ __forceinline__ void choose(int need) {
    if (need <= 0) {
      for (int i = thread(); 32 * i < length; i += kThreads) words[i] = 0;
      return;
    }
    Digit found;
    if (find_cut_bin(need, found)) {
      go_through<true>(found.digit);
      rank_near(found.count, [&](int better, float, int position) {
        if (better < found.rank) atomicOr(&words[position / 32], 1u << (position & 31));
      });
      return;
    }
    const ScoreCut cut = need < usable ? cut_by_radix(*this, need) : ScoreCut::everything();
    for (int i = thread(); i < round_up(length); i += kThreads) {
      const uint32_t word = __ballot_sync(kWarp, cut.takes(scores[i], i));
      if (lane() == 0) words[i / 32] = word;
    }
  }

  // The score of the k-th best candidate, or of the worst where there are fewer; infinity for none. To the
  // first thread at least.
  __device__ __forceinline__ float kth_best(int k) {
    if (usable == 0) return kInfinity;
    if (k >= usable) return worst();
    Digit found;
    if (!find_cut_bin(k, found)) return cut_by_radix(*this, k).score;
    go_through<false>(found.digit);
    rank_near(found.count, [&](int better, float score, int) {
      if (better == found.rank - 1) scratch.kth = score;
    });
    __syncthreads();
    return scratch.kth;
  }

 private:
  __device__ __forceinline__ float worst() {
    float mine = kInfinity;
    for (int i = first + thread(); i < recent; i += kThreads)
      if (scores[i] > -kInfinity) mine = fminf(mine, scores[i]);
    mine = -cuda::warp_max(-mine);
    __syncthreads();  // all have read the sums before
    if (lane() == 0) scratch.sums[0][warp()] = mine;
    __syncthreads();
    for (int i = 0; i < kWarps; ++i) mine = fminf(mine, scratch.sums[0][i]);
    return mine;
  }

  // The bin with the need-th best of more candidates. False where the histogram does not tell, or too many
  // lie there.
  __device__ __forceinline__ bool find_cut_bin(int need, Digit& found) {
    if (need >= usable || wild) return false;
    if (warp() == 0) {
      const Digit at = find_bin(scratch.bins + 1, need);
      if (lane() == 0) {
        scratch.found = at;
        scratch.near_count = 0;
      }
    }
    __syncthreads();
    found = scratch.found;
    return found.digit >= 0 && found.count <= kRanked;
  }

  // Collects the candidates of a bin, and with kMark sets the bits of what lies above it.
  template <bool kMark>
  __device__ __forceinline__ void go_through(int digit) {
    const uint32_t bin = ScoreBins::kFirst + 1 + digit;
    const auto enter = [&](float s, int position) {
      if (bins.bits(s) == bin && candidate(position))
        scratch.near[atomicAdd(&scratch.near_count, 1)] =
            uint2{__float_as_uint(s), static_cast<uint32_t>(position)};
    };
    for_each_four(round_up(length), [&](float4 s, int i) {
      const uint32_t of[4] = {bins.bits(s.x), bins.bits(s.y), bins.bits(s.z), bins.bits(s.w)};
      if (of[0] == bin || of[1] == bin || of[2] == bin || of[3] == bin) {
        enter(s.x, i);
        enter(s.y, i + 1);
        enter(s.z, i + 2);
        enter(s.w, i + 3);
      }
      if (!kMark) return;
      // Four positions a lane: eight lanes share a word.
      uint32_t word = (of[0] > bin) | (of[1] > bin) << 1 | (of[2] > bin) << 2 | (of[3] > bin) << 3;
      word <<= 4 * (lane() % 8);
#pragma unroll
      for (int lanes = 1; lanes < 8; lanes *= 2) word |= __shfl_xor_sync(kWarp, word, lanes);
      if (lane() % 8 == 0) words[i / 32] = word;
    });
    __syncthreads();
  }

  // Calls visit(better, score, position) for this thread's share of the collected entries: how many of them
  // come before it.
  template <class Visit>
  __device__ __forceinline__ void rank_near(int count, Visit visit) {
    for (int i = thread(); i < count; i += kThreads) {
      const uint2 entry = scratch.near[i];
      const float score = __uint_as_float(entry.x);
      int better = 0;
      for (int j = 0; j < count; ++j) {
        const uint2 other = scratch.near[j];
        const float its = __uint_as_float(other.x);
        better += its > score || (its == score && other.y < entry.y);
      }
      visit(better, score, static_cast<int>(entry.y));
    }
  }

  // Positions that whole warps go through; the workspace has room for them.
  static __device__ __forceinline__ int round_up(int length) {
    return (length + 127) / 128 * 128;
  }

  // The cut by radix steps, whatever the scores. The row by value, so that the caller's stays in registers.
  static __device__ __noinline__ ScoreCut cut_by_radix(StoredRow row, int need) {
    const auto for_each = [&](auto visit) {
      for (int i = row.first + thread(); i < row.recent; i += kThreads)
        if (row.scores[i] > -kInfinity) visit(row.scores[i], i);
    };
    // ReLU leaves zeros, often more than are wanted.
    int positive = 0, zero = 0;
    for_each([&](float s, int) {
      positive += s > 0;
      zero += s == 0;
    });
    const int2 all = block_sums(positive, zero, row.scratch.counts);
    auto& scratch = row.scratch.radix;
    float score = 0;
    int ties = need - all.x, equal = all.y;
    __syncthreads();
    if (ties <= 0 || ties > equal) {
      score = ordered_value(find_kth(
          scratch, need, [&](auto visit) { for_each([&](float s, int) { visit(ordered_key(s)); }); }));
      ties = scratch.found_rank;
      equal = scratch.found_count;
      __syncthreads();
    }
    if (ties == equal) return {score, INT32_MAX};
    return {score, find_kth_position(scratch, ties, row.length, [&](auto visit) {
              for_each([&](float s, int at) {
                if (s == score) visit(at);
              });
            })};
  }
};

}  // namespace gsa::fused_select
