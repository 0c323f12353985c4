// A warp's running softmax in the decode kernels, whose products have keys as rows and a group's heads as
// columns.
#pragma once

#include "gsa/cuda/mma.h"
#include "gsa/cuda/reduction.h"

namespace gsa::decode {

// In base 2, over a warp's keys, for eight heads. Lane (g, q) = (lane / 4, lane % 4) holds columns (heads) 2q
// and 2q + 1, and rows g and g + 8 of each block of the output.
template <int kDim>
struct Softmax {
  static constexpr int kRows = kDim / 16;
  float out[kRows][4] = {};
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {};
};

// Turns logits of 16 keys, the lane's those of keys g and g + 8, into weights exp2(scale * logit - peak) in
// the layout of a B operand, and rescales what was accumulated before under a lower peak.
template <int kDim>
__device__ __forceinline__ void weigh(Softmax<kDim>& softmax, float (&s)[4], bool seen0, bool seen8,
                                      float scale, unsigned (&weights)[2]) {
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    s[h] = seen0 ? s[h] * scale : -INFINITY;
    s[h + 2] = seen8 ? s[h + 2] * scale : -INFINITY;
    float peak = fmaxf(s[h], s[h + 2]);
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
    peak = fmaxf(peak, softmax.peak[h]);
    factor[h] = cuda::softmax_weight(softmax.peak[h], peak);
    softmax.peak[h] = peak;
    s[h] = seen0 ? cuda::fast_exp2(s[h] - peak) : 0.0f;
    s[h + 2] = seen8 ? cuda::fast_exp2(s[h + 2] - peak) : 0.0f;
    softmax.sum[h] = softmax.sum[h] * factor[h] + s[h] + s[h + 2];
  }
  weights[0] = cuda::transpose8x8(cuda::pack_bf16(s[0], s[1]));
  weights[1] = cuda::transpose8x8(cuda::pack_bf16(s[2], s[3]));
#pragma unroll
  for (auto& out : softmax.out) {
    out[0] *= factor[0];
    out[1] *= factor[1];
    out[2] *= factor[0];
    out[3] *= factor[1];
  }
}

// Of head 2q + h: the sum over all of the warp's keys.
template <int kDim>
__device__ __forceinline__ float total_weight(const Softmax<kDim>& softmax, int h) {
  float sum = softmax.sum[h];
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

}  // namespace gsa::decode
