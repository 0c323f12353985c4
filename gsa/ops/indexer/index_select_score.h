// Scores of a tile of queries against a block of keys, in registers (sm_90a).
//
// A warpgroup holds 32 queries; its 64-row products pair two heads of each: row 16 w + g is query 8 w + g
// with head 2 p, row 16 w + g + 8 the same query with head 2 p + 1, for product p. So the thread of quad lane
// c holds all heads of one query (8 w + g, g = lane / 4) for the keys 8 i + 2 c + {0, 1} of a block, and its
// weights and biases fit registers.
#pragma once

#include <cstdint>

#include "gsa/cuda/reduction.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_plan.h"

namespace gsa::fused_select {

// A single head is scored as two equal ones of half the weight.
template <int kHeads_, int kDim_, IndexActivation kActivation_, bool kSoftmax_ = false>
struct Shape {
  static constexpr int kHeads = kHeads_;
  static constexpr int kDim = kDim_;
  static constexpr IndexActivation kActivation = kActivation_;
  static constexpr bool kSoftmax = kSoftmax_;  // sums for the entropy and the maximum, too
  static constexpr int kProducts = kHeads == 1 ? 1 : kHeads / 2;
  static constexpr int kScored = 2 * kProducts;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kColumns = kHeads == 8 ? 32 : 64;  // keys of one product
  static constexpr int kConsumers = consumer_warpgroups(kHeads, kDim);
  static constexpr int kPanelDim = kDim < 64 ? kDim : 64;  // columns of a swizzled panel
  static constexpr int kPanelBytes = kBlockKeys * kPanelDim * 2;
  static constexpr int kStageBytes = kBlockKeys * kDim * 2;
};

template <class S>
struct Query {
  uint32_t fragment[S::kProducts][S::kSteps][4];
  float weight[S::kScored];
  float bias[S::kScored];
  float offset;  // the score's constant part
  bool wild;     // an input so large (or not finite) that a score may be NaN
};

// Magnitudes from 2^60 on, infinities and NaN: below, a dot product of 128 terms cannot overflow.
__device__ __forceinline__ bool is_wild(uint32_t bf16_pair) {
  return (bf16_pair & 0x7f80u) >= 0x5d80u || (bf16_pair & 0x7f800000u) >= 0x5d800000u;
}

// The activations, with constants folded: act(z / sqrt(dim) + b) * w becomes a few operations on z.
//   sigmoid(x) = 1/2 + tanh(x / 2) / 2; hard_sigmoid(x) = saturate(x / 4 + 1/2).
template <class S>
struct Activate {
  static constexpr float kRoot = S::kDim == 32 ? 5.656854249f : S::kDim == 64 ? 8.0f : 11.31370850f;
  static constexpr float kFactor = S::kActivation == IndexActivation::kSigmoid       ? 0.5f
                                   : S::kActivation == IndexActivation::kHardSigmoid ? 0.25f
                                                                                     : 1.0f;
  static constexpr float kScale = kFactor / kRoot;

  static __device__ __forceinline__ float bias(float b) {
    return kFactor * b + (S::kActivation == IndexActivation::kHardSigmoid ? 0.5f : 0.0f);
  }
  static __device__ __forceinline__ float weight(float w) {
    return S::kActivation == IndexActivation::kSigmoid ? 0.5f * w : w;
  }
  static __device__ __forceinline__ float offset(float w) {
    return S::kActivation == IndexActivation::kSigmoid ? 0.5f * w : 0.0f;
  }
  static __device__ __forceinline__ float apply(float x) {
    if constexpr (S::kActivation == IndexActivation::kSigmoid) {
      return cuda::fast_tanh(x);
    } else if constexpr (S::kActivation == IndexActivation::kHardSigmoid) {
      return __saturatef(x);
    } else {
      return fmaxf(x, 0.0f);
    }
  }
};

// Loads this thread's query (token `query` of batch row `batch`; none if out of range).
template <class S>
__device__ __forceinline__ void load_query(const IndexSelectParams& p, int64_t batch, int64_t query,
                                           Query<S>& q) {
  const int c = threadIdx.x & 3;
  const bool valid = query < p.queries;
  const int64_t token = batch * p.queries + (valid ? query : 0);
  q.offset = 0;
  q.wild = false;
#pragma unroll
  for (int j = 0; j < S::kScored; ++j) {
    const int head = S::kHeads == 1 ? 0 : j;
    const float w = valid ? p.head_weight[token * S::kHeads + head] * (S::kHeads == 1 ? 0.5f : 1.0f) : 0.0f;
    const float b = valid && p.head_bias != nullptr ? p.head_bias[head] : 0.0f;
    q.weight[j] = Activate<S>::weight(w);
    q.bias[j] = Activate<S>::bias(b);
    q.offset += Activate<S>::offset(w);
    q.wild |= !(fabsf(w) < 1e18f) || !(fabsf(b) < 1e18f);
    const uint32_t* row =
        reinterpret_cast<const uint32_t*>(p.index_query) + (token * S::kHeads + head) * (S::kDim / 2);
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t pair = valid ? row[8 * k + 4 * half + c] : 0;
        q.fragment[j / 2][k][2 * half + (j & 1)] = pair;
        q.wild |= is_wild(pair);
      }
    }
  }
}

// Descriptor of a block of keys in a swizzled panel (rows are keys, 8 of them to a swizzle atom), in two
// halves: the low one takes the address, the high one is a constant.
__device__ __forceinline__ uint32_t key_descriptor_low(uint32_t address) {
  return 1u << 16 | address >> 4;
}
template <class S>
constexpr uint32_t kKeyDescriptorHigh = (S::kPanelDim == 64 ? 1u : 2u) << 30 | (8 * S::kPanelDim * 2) >> 4;

// Starts the products of the query tile with keys [first_key, first_key + kColumns) of a staged block, one
// after the other, each a group to wait for.
template <class S>
__device__ __forceinline__ void issue_products(const Query<S>& q, uint32_t stage, int first_key,
                                               float (&logits)[S::kProducts][S::kColumns / 2]) {
  const uint32_t low = key_descriptor_low(stage);
  cuda::wgmma_fence();
#pragma unroll
  for (int p = 0; p < S::kProducts; ++p) {
#pragma unroll
    for (int k = 0; k < S::kSteps; ++k) {
      const int panel = 16 * k / S::kPanelDim;
      const int column = 16 * k % S::kPanelDim;
      const uint32_t offset = panel * S::kPanelBytes + first_key * S::kPanelDim * 2 + column * 2;
      const uint64_t descriptor = uint64_t{kKeyDescriptorHigh<S>} << 32 | (low + (offset >> 4));
      cuda::Wgmma<S::kColumns>::template rs<false>(logits[p], q.fragment[p][k], descriptor, k != 0);
    }
    cuda::wgmma_commit();
  }
}

// What the products from kFirst to before kEnd add to `sum`, score number i (0 .. kColumns / 4) of this
// thread: key 8 (i / 2) + 2 c + i % 2. `wild` inputs are looked at for NaN, which saturation and maximum
// would hide.
template <class S, bool kCareful, int kFirst = 0, int kEnd = S::kProducts>
__device__ __forceinline__ float score(const Query<S>& q,
                                       const float (&logits)[S::kProducts][S::kColumns / 2], int i,
                                       float sum) {
  bool bad = false;
#pragma unroll
  for (int j = 2 * kFirst; j < 2 * kEnd; ++j) {
    const float z = logits[j / 2][4 * (i / 2) + 2 * (j & 1) + (i & 1)];
    const float x = fmaf(z, Activate<S>::kScale, q.bias[j]);
    if (kCareful) bad |= isnan(x);
    sum = fmaf(q.weight[j], Activate<S>::apply(x), sum);
  }
  return kCareful && bad ? __uint_as_float(0x7fc00000u) : sum;
}

// Adds all products but the last to the scores, each as soon as it is there and while the next one runs.
template <class S, int kProduct = 0>
__device__ __forceinline__ void score_early(const Query<S>& q, float (&logits)[S::kProducts][S::kColumns / 2],
                                            float (&scores)[S::kColumns / 4]) {
  if constexpr (kProduct < S::kProducts - 1) {
    cuda::wgmma_wait<S::kProducts - 1 - kProduct>();
    cuda::wgmma_pin(logits[kProduct]);
#pragma unroll
    for (int i = 0; i < S::kColumns / 4; ++i)
      scores[i] = score<S, false, kProduct, kProduct + 1>(q, logits, i, scores[i]);
    cuda::wgmma_pin(scores);
    score_early<S, kProduct + 1>(q, logits, scores);
  }
}

}  // namespace gsa::fused_select
