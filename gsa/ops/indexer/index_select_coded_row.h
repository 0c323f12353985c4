// A row of stored codes and the thread block that selects from it (docs/kernels/index_select.md, "Stored
// scores").
//
// The block goes over a row's codes twice: for the sums of the variance and a histogram; then for the bits of
// who lies above the bin with the cut. That bin's codes decide, and where several keys share the one at the
// cut and not all of them are wanted, their scores in fp32.
#pragma once

#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_block.h"
#include "gsa/ops/indexer/index_select_budget.h"
#include "gsa/ops/indexer/index_select_code.h"
#include "gsa/ops/indexer/index_select_positions.h"
#include "gsa/ops/indexer/index_select_rescore.h"
#include "gsa/ops/indexer/index_select_row.h"

namespace gsa::fused_select {

// Variances from which on codes are fine enough for the variance to be off by a thousandth at most, in
// squares of a code's width: of one row, and times the number of its scores, whose errors average out.
constexpr float kLeastVariance = 100;
constexpr float kLeastSpread = 6e6f;

template <int kThreads>
struct alignas(16) CodedRowScratch {
  // Entries of the bin with the cut, or of its code, that are listed, and eights of codes with such an entry.
  static constexpr int kNear = 4 * kThreads;
  static constexpr int kParts = kNear + 2;  // at either end of the candidates kept positions lie in one

  union {
    uint32_t bins[kCodeBins];
    struct {
      uint32_t near[kNear];  // (code within the bin, position)
      union {
        uint32_t parts[kParts];
        float scores[kNear];
      };
      int tied[kNear];  // positions that share the code at the cut
    };
    BlockScratch<kThreads, 512> radix;
    uint16_t gathered[kPlaces];
  };
  uint32_t low[kBinCodes];
  uint32_t sums[4][kThreads / 32];
  float2 exact[kThreads / 32];
  int scan[kThreads / 32];
  Digit found;
  int parts_count;
  int near_count;
  int tied_count;
  int kept_nan;  // kept positions whose score is NaN
};

template <int kThreads>
struct CodedRow {
  uint16_t* codes;
  uint32_t* words;  // who is taken, a bit a position
  CodedRowScratch<kThreads>& scratch;
  const IndexSelectParams& p;
  unsigned sequence;
  int64_t token;
  int length;          // positions up to the query's
  int first;           // candidates lie from here on
  int recent;          // and before
  float weight = 0;    // of head number `lane`
  float scale = 1;     // of the scores' sums; 0: the codes mean nothing
  float variance = 0;  // of all scores but NaN
  int usable = 0;      // candidates that may be chosen
  bool has_nan = false;

  static constexpr int kWarps = kThreads / 32;
  static constexpr int kNear = CodedRowScratch<kThreads>::kNear;
  static constexpr uint32_t kAll = 0x10000;  // in the place of a code: any

  static __device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) & 31; }
  static __device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ __forceinline__ bool candidate(int position) const {
    return position >= first && position < recent;
  }
  __device__ __forceinline__ int parts() const { return (length + 7) / 8; }
  __device__ __forceinline__ uint4 part(int number) const {
    return reinterpret_cast<const uint4*>(codes)[number];
  }

  // Calls visit(eight codes, number) for the parts before `end`; several loads are in flight. kAgain: from
  // the end on, where the row was read last and lies in the first-level cache. Otherwise the block comes
  // together once the first loads are under way.
  template <bool kAgain, class Visit>
  __device__ __forceinline__ void for_each_part(int end, Visit visit) const {
    constexpr int kFlight = 4, kStep = kThreads * kFlight;
    const int rounds = kAgain ? (end + kStep - 1) / kStep : max((end + kStep - 1) / kStep, 1);
    for (int round = 0; round < rounds; ++round) {
      const int base = (kAgain ? rounds - 1 - round : round) * kStep + thread();
      uint4 eight[kFlight];
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (base + kThreads * j < end) eight[j] = part(base + kThreads * j);
      if (!kAgain && round == 0) __syncthreads();
#pragma unroll
      for (int j = 0; j < kFlight; ++j)
        if (base + kThreads * j < end) visit(eight[j], base + kThreads * j);
    }
  }

  // The same for scores: calls visit(score, position) for all positions, or those with this code; the scores
  // are computed again. Lanes go through all positions together, and rest(position) is called for the others.
  template <class Visit, class Rest>
  __device__ __forceinline__ void for_each_score(const Rescore& rescore, uint32_t code, Visit visit,
                                                 Rest rest) const {
#pragma unroll 1
    for (int begin = 32 * warp(); begin < length; begin += 32 * kWarps) {
      const int position = begin + lane();
      const bool mine = position < length && (code == kAll || codes[position] == code);
      const uint32_t wanted = __ballot_sync(kWarp, mine);
      float score = 0;
#pragma unroll 1
      for (int i = 0; i < 32; i += 8) {
        if ((wanted >> i & 0xffu) == 0) continue;
        const float its = rescore(min(begin + i + lane() % 8, length - 1));
        if (lane() / 8 == i / 8) score = its;
      }
      if (mine)
        visit(score, position);
      else if (position < length)
        rest(position);
    }
  }

  // Makes the scratch ready, until the block comes together next.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCodeBins / 4; i += kThreads)
      if (i + thread() < kCodeBins / 4)
        reinterpret_cast<uint4*>(scratch.bins)[i + thread()] = uint4{0, 0, 0, 0};
    if (thread() < kBinCodes) scratch.low[thread()] = 0;
    if (thread() == 0) scratch.kept_nan = scratch.parts_count = scratch.near_count = scratch.tied_count = 0;
    weight = lane() < p.heads ? p.head_weight[token * p.heads + lane()] : 0.0f;
  }

  // All codes: their sums, and the histogram of the candidates.
  __device__ __forceinline__ void count() {
    CodeSums sums;
    const auto enter = [&](uint4 v) {
      sums.enter(v.x, v.y);
      sums.enter(v.z, v.w);
      count_pair(scratch.bins, v.x);
      count_pair(scratch.bins, v.y);
      count_pair(scratch.bins, v.z);
      count_pair(scratch.bins, v.w);
    };
    const int whole = length / 8, rest = length % 8;
    for_each_part<false>(whole, [&](uint4 v, int) { enter(v); });
    if (rest != 0 && thread() == whole % kThreads) {
      uint4 v = part(whole);
      const auto cut = [&](uint32_t pair, int at) {
        return rest >= at + 2 ? pair : rest > at ? pair & 0xffffu : 0;
      };
      v = uint4{cut(v.x, 0), cut(v.y, 2), cut(v.z, 4), cut(v.w, 6)};
      enter(v);
      atomicSub(&scratch.bins[0], static_cast<uint32_t>(8 - rest));
    }
    // Kept positions are no candidates.
    const auto leave = [&](int position) {
      const uint32_t code = codes[position];
      atomicSub(&scratch.bins[code / kBinCodes % kCodeBins], 1u);
      if (code == 0) atomicAdd(&scratch.kept_nan, 1);
    };
#pragma unroll 1
    for (int i = thread(); i < first; i += kThreads) leave(i);
#pragma unroll 1
    for (int i = recent + thread(); i < length; i += kThreads) leave(i);
    set_variance(sums);
  }

  // Whether the best `need` candidates are all there are.
  __device__ __forceinline__ bool takes_all(int need) const {
    return need >= usable && !has_nan;
  }

  // Sets the bits of the best `need` candidates; those of kept positions and behind the row mean nothing.
  __device__ __forceinline__ void choose(int need) {
    if (need <= 0) {
#pragma unroll 1
      for (int i = thread(); 32 * i < length; i += kThreads) words[i] = 0;
      return;
    }
    if (scale == 0.0f) return choose_by_scores(*this, min(need, usable));
    if (need >= usable) return mark(1);
    const Digit bin = find_bin(need);
    if (bin.digit == kLowestCode / kBinCodes) {
      mark(kLowestCode + 1);
      return take_first(*this, kLowestCode, bin.rank);
    }
    const uint32_t from = bin.digit * kBinCodes;
    if (bin.count <= kNear) {
      mark_near(from, kBinCodes);
      choose_near(bin.count, bin.rank);
      return;
    }
    choose_in_bin(*this, from, bin.count, bin.rank);
  }

 private:
  __device__ __forceinline__ void set_variance(const CodeSums& mine) {
    const uint32_t sums[4] = {mine.all, mine.hh, mine.hl, mine.ll};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint32_t sum = __reduce_add_sync(kWarp, sums[i]);
      if (lane() == 0) scratch.sums[i][warp()] = sum;
    }
    __syncthreads();
    uint64_t all = 0, squares = 0;
    for (int i = 0; i < kWarps; ++i) {
      all += scratch.sums[0][i];
      squares +=
          (uint64_t{scratch.sums[1][i]} << 16) + (uint64_t{scratch.sums[2][i]} << 9) + scratch.sums[3][i];
    }
    float magnitudes = 0;  // added up as the kernel that scores does
#pragma unroll
    for (int i = 0; i < 8; ++i) magnitudes += __shfl_sync(kWarp, fabsf(weight), i);
    scale = code_scale(magnitudes);
    const int without = static_cast<int>(scratch.bins[0]), numbers = length - without - scratch.kept_nan;
    usable = max(0, recent - first) - without;
    has_nan = numbers < length;
    const auto n = static_cast<float>(max(numbers, 1));
    const double sum = static_cast<double>(all);
    const auto spread = static_cast<float>(static_cast<double>(squares) * numbers - sum * sum) / (n * n);
    const float width = __fdividef(kCodeStep, scale);  // of powers of two, or infinite
    variance = spread * width * width;
    const bool one_score = all == uint64_t{kLowestCode} * numbers;
    if (scale == 0.0f || ((spread < kLeastVariance || spread * n < kLeastSpread) && !one_score)) {
      const Exact exact = count_exactly(*this);
      variance = exact.variance;
      usable = exact.usable;
      has_nan |= scale == 0.0f;
    }
  }

  // The bin with the need-th best of more candidates.
  __device__ __forceinline__ Digit find_bin(int need) {
    constexpr int kMine = kCodeBins / kThreads;
    uint32_t mine[kMine], sum = 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) sum += mine[i] = scratch.bins[kMine * thread() + i];
    int total;
    const int before = block_exclusive_sum<kThreads>(static_cast<int>(sum), scratch.scan, total);
    int above = total - before - static_cast<int>(sum);
    if (above < need && need <= total - before) {
#pragma unroll
      for (int i = kMine - 1; i >= 0; --i) {
        const int count = static_cast<int>(mine[i]);
        if (above < need && need <= above + count)
          scratch.found = {kMine * thread() + i, need - above, count};
        above += count;
      }
    }
    __syncthreads();
    return scratch.found;
  }

  // The same among the codes of one bin, which scratch.low counts, by every warp.
  __device__ __forceinline__ Digit find_low(int count, int rank) {
    const int mine = static_cast<int>(scratch.low[lane()]);
    const int above = count - cuda::warp_exclusive_sum(mine) - mine;
    const int owner = __ffs(__ballot_sync(kWarp, above < rank && rank <= above + mine)) - 1;
    return {owner, rank - __shfl_sync(kWarp, above, owner), __shfl_sync(kWarp, mine, owner)};
  }

  static __device__ __forceinline__ uint32_t both(uint32_t code) {
    return code * 0x10001u;
  }

  // Sets the bits of codes from `from` on.
  __device__ __forceinline__ void mark(uint32_t from) {
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(words);
    for_each_part<true>(
        parts(), [&](uint4 v, int i) { bytes[i] = static_cast<uint8_t>(bits_at_least(v, both(from))); });
    __syncthreads();
  }

  // Sets the bits of codes behind the `width` from `from` on, and lists the candidates with these: at most
  // kNear.
  __device__ __forceinline__ void mark_near(uint32_t from, int width) {
    uint8_t* const bytes = reinterpret_cast<uint8_t*>(words);
    const uint32_t low = both(from), high = both(from + width);
    for_each_part<true>(parts(), [&](uint4 v, int i) {
      const uint32_t above = bits_at_least(v, high);
      bytes[i] = static_cast<uint8_t>(above);
      if (((bits_at_least(v, low) ^ above) & 0xffu) != 0 && 8 * i + 8 > first && 8 * i < recent)
        scratch.parts[atomicAdd(&scratch.parts_count, 1)] = i;
    });
    __syncthreads();
#pragma unroll 1
    for (int i = thread(); i < scratch.parts_count; i += kThreads) {
      const int begin = 8 * static_cast<int>(scratch.parts[i]);
      for_each_near(part(begin / 8), begin, from, width, [&](uint32_t digit, int position) {
        atomicAdd(&scratch.low[digit], 1u);
        scratch.near[atomicAdd(&scratch.near_count, 1)] = digit << 26 | position;
      });
    }
    __syncthreads();
  }

  // Calls visit(code - from, position) for candidates of eight codes whose code is one of `width`.
  template <class Visit>
  __device__ __forceinline__ void for_each_near(uint4 v, int begin, uint32_t from, int width,
                                                Visit visit) const {
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t digit = (j % 2 == 0 ? pairs[j / 2] & 0xffffu : pairs[j / 2] >> 16) - from;
      if (digit < static_cast<uint32_t>(width) && candidate(begin + j)) visit(digit, begin + j);
    }
  }

  // The same for the whole row.
  template <class Visit>
  __device__ __forceinline__ void for_each_near(uint32_t from, int width, Visit visit) const {
    for_each_part<true>(parts(), [&](uint4 v, int i) {
      if (((bits_at_least(v, both(from)) ^ bits_at_least(v, both(from + width))) & 0xffu) != 0)
        for_each_near(v, 8 * i, from, width, visit);
    });
  }

  __device__ __forceinline__ void take(int position) {
    atomicOr(&words[position / 32], 1u << (position & 31));
  }

  // The best `rank` of the listed entries.
  __device__ __forceinline__ void choose_near(int count, int rank) {
    const Digit code = find_low(count, rank);
    const bool all = code.rank == code.count;
    for (int i = thread(); i < count; i += kThreads) {
      const int digit = static_cast<int>(scratch.near[i] >> 26);
      const int position = static_cast<int>(scratch.near[i] & ((1u << 26) - 1));
      if (digit > code.digit || (digit == code.digit && all))
        take(position);
      else if (digit == code.digit)
        scratch.tied[atomicAdd(&scratch.tied_count, 1)] = position;
    }
    if (!all) choose_tied(*this, code.count, code.rank);
  }

  // ---- what is seldom done (index_select_coded_ties.h), apart and given the row by value, so that the
  // caller's stays in registers

  struct Exact {
    float variance;
    int usable;
  };

  // The variance from scores in fp32, and of these the candidates that may be chosen: not NaN nor -inf.
  static __device__ __noinline__ Exact count_exactly(CodedRow row);

  // The best `rank` of the tied positions, by their scores.
  static __device__ __noinline__ void choose_tied(CodedRow row, int count, int rank);

  // The same where the bin with the cut has more entries than are listed.
  static __device__ __noinline__ void choose_in_bin(CodedRow row, uint32_t from, int count, int rank);

  // The first `rank` candidates with this code.
  static __device__ __noinline__ void take_first(CodedRow row, uint32_t code, int rank);

  // All candidates with larger codes, and the best `rank` of those with this one, by their scores, however
  // many there are. Overwrites the row's codes.
  static __device__ __noinline__ void choose_among(CodedRow row, uint32_t code, int rank);

  // The best `rank` candidates by their scores, where codes mean nothing.
  static __device__ __noinline__ void choose_by_scores(CodedRow row, int rank);
};

}  // namespace gsa::fused_select
