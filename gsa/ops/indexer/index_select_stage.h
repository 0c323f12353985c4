// From scores to survivors: what a thread keeps of its query's row, and how scores that beat the gate are
// staged in shared memory.
#pragma once

#include <type_traits>

#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/reduction.h"
#include "gsa/ops/indexer/index_select_row.h"
#include "gsa/ops/indexer/index_select_score.h"

namespace gsa::fused_select {

// What a thread keeps of its query's row in registers: where it stages, the gate, and sums for the variance.
struct Row {
  uint32_t next;    // where in shared memory this lane stages its next survivor
  float gate;       // scores (less shift) must exceed it
  float shift = 0;  // near the mean, so that squares lose nothing
  float sum = 0;
  float squares = 0;
};

// With the sums of a softmax over the row's valid scores so far: of w = 2^(factor (score - best)) and of w
// (score - best).
struct SoftmaxRow : Row {
  static constexpr float kNone = -1e30f;  // not -inf, which would leave NaN when a first score arrives

  float factor = 1;
  float best = kNone;
  float weight = 0;
  float weighted = 0;

  __device__ __forceinline__ void forget() {
    best = kNone;
    weight = weighted = 0;
  }
  __device__ __forceinline__ void enter(float score) {
    if (score > best) {
      const float step = best - score, scale = cuda::fast_exp2(factor * step);
      weighted = scale * fmaf(weight, step, weighted);
      weight *= scale;
      best = score;
    }
    const float below = score - best, w = cuda::fast_exp2(factor * below);
    weight += w;
    weighted = fmaf(w, below, weighted);
  }
};

template <class S>
using RowOf = std::conditional_t<S::kSoftmax, SoftmaxRow, Row>;

// And what it needs seldom, in shared memory. Seven words, so that neighbours lie in different banks.
struct RowNotes {
  Scale scale;   // of the row's histogram
  int count;     // survivors in the list
  int skipped;   // valid keys of this lane whose score is NaN
  int position;  // of the query; -1: no query
  int end;       // candidates lie before: the query itself is one, or with shared rows those before its tile
  int need;      // the most candidates that the row may need
};

// How far a lane's staging place moves by this score. In assembly, so that it is a selection and no branch.
__device__ __forceinline__ uint32_t staged_step(float gate, float score) {
#ifdef GSA_EMULATE_CUDA
  return score > gate ? kStagedStep : 0;
#else
  uint32_t step;
  asm("{\n"
      ".reg .pred above;\n"
      "setp.gt.f32 above, %1, %2;\n"
      "selp.u32 %0, %3, 0, above;\n"
      "}\n"
      : "=r"(step)
      : "f"(score), "f"(gate), "n"(kStagedStep));
  return step;
#endif
}

// Stages a score at `to`, if it is above the gate; without a branch.
__device__ __forceinline__ void stage_above(float gate, float score, int position, uint32_t to) {
#ifdef GSA_EMULATE_CUDA
  if (!(score > gate)) return;
  const uint2 entry{__float_as_uint(score), static_cast<uint32_t>(position)};
  std::memcpy(emulation::shared_base() + to, &entry, sizeof(entry));
#else
  asm volatile(
      "{\n"
      ".reg .pred above;\n"
      "setp.gt.f32 above, %1, %2;\n"
      "@above st.shared.v2.b32 [%0], {%3, %4};\n"
      "}\n" ::"r"(to),
      "f"(score), "f"(gate), "r"(__float_as_uint(score)), "r"(position));
#endif
}

__device__ __forceinline__ uint2 load_staged(uint32_t address) {
  uint2 entry;
#ifdef GSA_EMULATE_CUDA
  std::memcpy(&entry, emulation::shared_base() + address, sizeof(entry));
#else
  asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(entry.x), "=r"(entry.y) : "r"(address));
#endif
  return entry;
}

// A word in shared memory that other warps change by atomics.
__device__ __forceinline__ int load_relaxed(const int* word) {
#ifdef GSA_EMULATE_CUDA
  return *word;
#else
  int value;
  asm volatile("ld.relaxed.cta.shared::cta.b32 %0, [%1];" : "=r"(value) : "r"(cuda::mbarrier_address(word)));
  return value;
#endif
}

// Stores an entry, if `wanted`, without a branch.
__device__ __forceinline__ void store_if(bool wanted, uint8_t* to, uint2 entry) {
#ifdef GSA_EMULATE_CUDA
  if (wanted) store_entry(to, entry);
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %0, 0;\n"
      "@wanted st.global.v2.b32 [%1], {%2, %3};\n"
      "}\n" ::"r"(static_cast<int>(wanted)),
      "l"(to), "r"(entry.x), "r"(entry.y));
#endif
}

// Which keys of a masked block count: valid ones enter the sums, candidates may be appended.
struct Bounds {
  int last_valid;
  int first_candidate;
  int candidates;

  __device__ __forceinline__ bool valid(int position) const { return position <= last_valid; }
  __device__ __forceinline__ bool candidate(int position) const {
    return static_cast<unsigned>(position - first_candidate) < static_cast<unsigned>(candidates);
  }
};

// Scores one product's worth of keys (the first of this thread's at `position`), sums them up, stages what
// passes. `begun`: where the scores start; unless masked, with all but the last product in them.
template <class S, bool kMasked>
__device__ __forceinline__ void take_scores(const Query<S>& q,
                                            const float (&logits)[S::kProducts][S::kColumns / 2],
                                            const float (&begun)[S::kColumns / 4], int position,
                                            const Bounds& bounds, RowOf<S>& row, RowNotes& notes) {
  constexpr int kGroup = 4;  // a store holds on to its address; so a few are computed before the first store
  constexpr int kRest = kMasked ? 0 : S::kProducts - 1;  // the products to come
  float sum = 0, squares = 0;
  int skipped = 0;
#pragma unroll
  for (int first = 0; first < S::kColumns / 4; first += kGroup) {
    float scores[kGroup], gates[kGroup];
    uint32_t to[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int i = first + j, key = position + 8 * (i / 2) + (i & 1);
      const float s = scores[j] = score<S, kMasked, kRest>(q, logits, i, begun[i]);
      gates[j] = kMasked && !bounds.candidate(key) ? kInfinity : row.gate;
      bool counts = true;
      if constexpr (kMasked) {
        counts = bounds.valid(key) && !isnan(s);
        skipped += bounds.valid(key) && isnan(s);
      }
      const float counted = counts ? s : 0.0f;
      sum = i == 0 ? counted : sum + counted;
      squares = counts ? fmaf(s, s, squares) : squares;
      if constexpr (S::kSoftmax)
        if (counts) row.enter(s);
      to[j] = row.next;
      row.next += staged_step(gates[j], s);
    }
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int i = first + j;
      stage_above(gates[j], scores[j], position + 8 * (i / 2) + (i & 1), to[j]);
    }
  }
  row.sum += sum;
  row.squares += squares;
  if (kMasked) notes.skipped += skipped;
}

// Enters a sample's scores into the row's histogram.
template <class S>
__device__ __forceinline__ void count_scores(const Query<S>& q,
                                             const float (&logits)[S::kProducts][S::kColumns / 2],
                                             Scale scale, uint32_t* bins) {
#pragma unroll
  for (int i = 0; i < S::kColumns / 4; ++i)
    atomicAdd(&bins[scale.bin(score<S, false>(q, logits, i, q.offset))], 1u);
}

}  // namespace gsa::fused_select
