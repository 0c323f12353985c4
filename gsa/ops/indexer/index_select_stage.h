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

// And what it needs seldom, in shared memory.
struct RowNotes {
  Scale scale;   // of the row's histogram
  int count;     // survivors in this lane's list
  int skipped;   // valid keys of this lane whose score is NaN
  int position;  // of the query; -1: no query
  int kept;      // positions selected anyway
  int need;      // the most others that the row may need

  // As if `total` entries lay spread over the lists.
  __device__ __forceinline__ void set_total(int total) {
    const int c = threadIdx.x & 3;
    count = total > c ? (total - c + 3) / 4 : 0;
  }
};

constexpr int kStagedStep = 32 * 8;  // bytes from one staged survivor of a lane to the next

// Stages without a branch: the predicated store and step cost nothing but their issue.
__device__ __forceinline__ void stage_above(float gate, float score, int position, uint32_t& next) {
#ifdef GSA_EMULATE_CUDA
  if (!(score > gate)) return;
  const uint2 entry{__float_as_uint(score), static_cast<uint32_t>(position)};
  std::memcpy(emulation::shared_base() + next, &entry, sizeof(entry));
  next += kStagedStep;
#else
  asm volatile(
      "{\n"
      ".reg .pred above;\n"
      "setp.gt.f32 above, %1, %2;\n"
      "@above st.shared.v2.b32 [%0], {%3, %4};\n"
      "@above add.u32 %0, %0, %5;\n"
      "}\n"
      : "+r"(next)
      : "f"(score), "f"(gate), "r"(__float_as_uint(score)), "r"(position), "n"(kStagedStep));
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

// Stores an entry in its list and counts it in its bin, if `wanted`; again without a branch.
__device__ __forceinline__ void store_and_count(bool wanted, uint8_t* to, uint2 entry, uint32_t* bin) {
#ifdef GSA_EMULATE_CUDA
  if (!wanted) return;
  store_entry(to, entry);
  atomicAdd(bin, 1u);
#else
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.ne.s32 wanted, %0, 0;\n"
      "@wanted st.global.v2.b32 [%1], {%2, %3};\n"
      "@wanted red.shared.add.u32 [%4], 1;\n"
      "}\n" ::"r"(static_cast<int>(wanted)),
      "l"(to), "r"(entry.x), "r"(entry.y), "r"(cuda::mbarrier_address(bin)));
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
// passes.
template <class S, bool kMasked>
__device__ __forceinline__ void take_scores(const Query<S>& q,
                                            const float (&logits)[S::kProducts][S::kColumns / 2],
                                            int position, const Bounds& bounds, RowOf<S>& row,
                                            RowNotes& notes) {
  const float start = q.offset - row.shift;
  float sum = 0, squares = 0;
  int skipped = 0;
#pragma unroll
  for (int i = 0; i < S::kColumns / 4; ++i) {
    const int key = position + 8 * (i / 2) + (i & 1);
    const float s = score<S, kMasked>(q, logits, i, start);
    if (kMasked) {
      const bool counts = bounds.valid(key) && !isnan(s);
      skipped += bounds.valid(key) && isnan(s);
      sum += counts ? s : 0.0f;
      squares += counts ? s * s : 0.0f;
      if constexpr (S::kSoftmax)
        if (counts) row.enter(s);
      stage_above(bounds.candidate(key) ? row.gate : kInfinity, s, key, row.next);
    } else {
      sum += s;
      squares = fmaf(s, s, squares);
      if constexpr (S::kSoftmax) row.enter(s);
      stage_above(row.gate, s, key, row.next);
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
