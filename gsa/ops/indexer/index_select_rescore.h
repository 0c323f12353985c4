// Scores of single keys, computed again in fp32 by a warp: for keys whose stored code does not tell.
#pragma once

#include "gsa/cuda/mma.h"
#include "gsa/ops/indexer/index_select_code.h"
#include "gsa/ops/indexer/index_select_params.h"
#include "gsa/ops/indexer/index_select_score.h"

namespace gsa::fused_select {

// A query and its sequence's keys.
struct Rescore {
  const uint4* query;  // the first head's
  const uint4* keys;
  const float* weight;
  const float* bias;  // or null
  int heads;
  int dim;
  IndexActivation activation;
  float scale;
  float origin;

  // As they are; or with a scale, that of the codes, the sums whose upper bits these are.
  __device__ __forceinline__ Rescore(const IndexSelectParams& p, int64_t sequence, int64_t token,
                                     float code_scale = 0.0f)
      : query(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.index_query) +
                                             token * p.heads * p.dim)),
        keys(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.index_key) +
                                            sequence * p.keys * p.dim)),
        weight(p.head_weight + token * p.heads),
        bias(p.head_bias),
        heads(p.heads),
        dim(p.dim),
        activation(p.activation),
        scale(code_scale == 0.0f ? 1.0f : code_scale),
        origin(code_scale == 0.0f ? 0.0f : kCodeOrigin) {
    if (code_scale == 0.0f) return;
    for (int j = 0; j < heads; ++j) origin += fmaxf(-weight[j] * scale, 0.0f);
  }

  // The scores of eight keys at a time, by the whole warp: lane l brings the position of key l % 8 and gets
  // its score. Heads are rows of the product, keys its columns; each lane holds eight neighbouring dimensions
  // of the 32 of two steps.
  __device__ __forceinline__ float operator()(int position) const {
    const int lane = static_cast<int>(threadIdx.x) & 31, head = lane / 4, quad = lane % 4;
    const int64_t row = int64_t{__shfl_sync(0xffffffffu, position, lane / 4)} * (dim / 8);
    float logits[4] = {};
#pragma unroll 1
    for (int i = quad; i < dim / 8; i += 4) {
      const uint4 key = keys[row + i];
      const uint4 part = head < heads ? query[head * (dim / 8) + i] : uint4{0, 0, 0, 0};
      cuda::mma_bf16(logits, part.x, 0, part.y, 0, key.x, key.y);
      cuda::mma_bf16(logits, part.z, 0, part.w, 0, key.z, key.w);
    }
    float a = of_head(head, logits[0]), b = of_head(head, logits[1]);
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      a += __shfl_xor_sync(0xffffffffu, a, step);
      b += __shfl_xor_sync(0xffffffffu, b, step);
    }
    a = __shfl_sync(0xffffffffu, a, lane % 8 / 2);
    b = __shfl_sync(0xffffffffu, b, lane % 8 / 2);
    return origin + (lane % 2 == 0 ? a : b);
  }

 private:
  __device__ __forceinline__ float of_head(int head, float logit) const {
    if (head >= heads) return 0.0f;
    const float root = dim == 64 ? 0.125f : dim == 32 ? 0.1767766953f : 0.0883883476f;  // 1 / sqrt(dim)
    const float x = fmaf(logit, root, bias != nullptr ? bias[head] : 0.0f);
    if (isnan(x)) return x;
    const float shared = activation == IndexActivation::kSigmoid ? fmaf(cuda::fast_tanh(0.5f * x), 0.5f, 0.5f)
                                                                 : __saturatef(fmaf(x, 0.25f, 0.5f));
    return weight[head] * scale * shared;
  }
};

}  // namespace gsa::fused_select
