// The budget of a query from its statistic, on the device (semantics.md 4).
#pragma once

#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_row.h"
#include "gsa/ops/indexer/index_select_stage.h"

namespace gsa::fused_select {

__device__ __forceinline__ int full_budget(const IndexSelectParams& p, int position) {
  return min(p.k_max, position + 1);
}

// A shift of few bits: subtracting it keeps scores exact that were, so that ties stay ties.
__device__ __forceinline__ float coarse(float shift) {
  return fabsf(shift) < 1e30f ? __uint_as_float(__float_as_uint(shift) & 0xffff0000u) : 0.0f;
}

// The budget rule's statistic of a query: the variance of its scores, or a fixed draw in [0.5, 1.5) per
// position, the fractional part of position times the golden ratio.
__device__ __forceinline__ float find_statistic(const IndexSelectParams& p, float variance, int position) {
  if (p.budget != SelectBudget::kRandom) return variance;
  const uint32_t draw = static_cast<uint32_t>(position + 1) * 2654435769u;
  return static_cast<float>(draw / 4294967296.0 + 0.5);
}

constexpr float kLog2E = 1.4426950408889634f;

// The factor of the entropy's softmax, in powers of two. Not zero: it multiplies infinities.
__device__ __forceinline__ float softmax_factor(const IndexSelectParams& p) {
  const bool scaled = p.budget == SelectBudget::kEntropy && p.log_scale != nullptr;
  return fmaxf(scaled ? expf(*p.log_scale) * kLog2E : kLog2E, 1e-30f);
}

// The largest score of a row, or the entropy of its softmax in nats, from the sums of the quad's lanes.
__device__ __forceinline__ float softmax_statistic(const IndexSelectParams& p, const SoftmaxRow& row) {
  const float best = cuda::warp_max<4>(row.best), below = row.best - best;
  const float scale = cuda::fast_exp2(row.factor * below);
  const float weight = cuda::warp_sum<4>(row.weight * scale);
  const float weighted = cuda::warp_sum<4>(scale * fmaf(row.weight, below, row.weighted));
  const bool none = best == SoftmaxRow::kNone;
  if (p.budget == SelectBudget::kMaxScore) return none ? -kInfinity : best + row.shift;
  return none ? 0.0f : logf(weight) - row.factor / kLog2E * (weighted / weight);
}

// The row's budget (semantics.md 4): no variance is no confidence, no ratio none of the rule's business.
template <bool kSoftmax = false>
__device__ __forceinline__ int find_budget(const IndexSelectParams& p, float statistic, int position) {
  float k = static_cast<float>(p.k_base);
  if (p.budget != SelectBudget::kFixed) {
    const bool inverse =
        p.budget == SelectBudget::kInverse || (kSoftmax && p.budget == SelectBudget::kMaxScore);
    const float mean = *p.running_mean;
    const float ratio = inverse ? mean / statistic : statistic / mean;
    if (!isnan(ratio)) k = rintf(ratio * k);
    if (inverse && statistic <= 0.0f) k = kInfinity;
  }
  k = fminf(fmaxf(k, static_cast<float>(p.k_min)), static_cast<float>(p.k_max));
  return min(static_cast<int>(k), position + 1);
}

}  // namespace gsa::fused_select
