// One warp's part in sparse_attention's decode kernel: gathers 16 keys and values straight into the registers
// of mma.m16n8k16 and adds them to a running softmax. Keys are the rows of the first product and the columns
// of the second, a group's heads the columns of both.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "gsa/cuda/mma.h"
#include "gsa/cuda/reduction.h"

namespace gsa::decode {

// One warp's running softmax over its keys, in base 2. Lane (g, q) = (lane / 4, lane % 4) holds columns
// (heads) 2q, 2q + 1 of each block of eight. Row r of block m of the output is dimension dimension(m, r).
template <int kDim, int kBlocks>
struct Accumulator {
  static constexpr int kRows = kDim / 16;
  float out[kBlocks][kRows][4];
  float peak[kBlocks][2], sum[kBlocks][2];

  __device__ void clear() {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      peak[n][0] = peak[n][1] = -INFINITY;
      sum[n][0] = sum[n][1] = 0;
#pragma unroll
      for (int m = 0; m < kRows; ++m) out[n][m][0] = out[n][m][1] = out[n][m][2] = out[n][m][3] = 0;
    }
  }
};

// A tile's rows of keys and values as a lane holds them.
template <int kDim>
struct Gathered {
  uint4 key[2][kDim / 32];    // rows g and g + 8: pieces q, q + 4, .. of 16 bytes
  uint4 value[4][kDim / 64];  // rows 2q, 2q + 1, 2q + 8, 2q + 9: pieces g, g + 8
};

// `index` of lane l is tile key l % 16; -1 reads nothing.
template <int kDim>
__device__ __forceinline__ void gather_keys(Gathered<kDim>& tile, int index, const __nv_bfloat16* key,
                                            int token_stride) {
  const int lane = threadIdx.x & 31, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int at = __shfl_sync(0xffffffffu, index, group + r * 8);
    const __nv_bfloat16* row = key + static_cast<int64_t>(at) * token_stride + quad * 8;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i)
      tile.key[r][i] = at >= 0 ? cuda::load_stream(row + i * 32) : make_uint4(0, 0, 0, 0);
  }
}

template <int kDim>
__device__ __forceinline__ void gather_values(Gathered<kDim>& tile, int index, const __nv_bfloat16* value,
                                              int token_stride) {
  const int lane = threadIdx.x & 31, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int at = __shfl_sync(0xffffffffu, index, quad * 2 + r % 2 + r / 2 * 8);
    const __nv_bfloat16* row = value + static_cast<int64_t>(at) * token_stride + group * 8;
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i)
      tile.value[r][i] = at >= 0 ? cuda::load_stream(row + i * 64) : make_uint4(0, 0, 0, 0);
  }
}

// A fragment of V^T from word w (two dimensions) of pairs of keys.
template <int kDim, int kBlocks>
__device__ __forceinline__ void add_values(Accumulator<kDim, kBlocks>& acc, const Gathered<kDim>& tile,
                                           const unsigned (&weights)[kBlocks][2]) {
#pragma unroll
  for (int i = 0; i < kDim / 64; ++i) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      const unsigned x0 = reinterpret_cast<const unsigned*>(&tile.value[0][i])[w];
      const unsigned x1 = reinterpret_cast<const unsigned*>(&tile.value[1][i])[w];
      const unsigned x8 = reinterpret_cast<const unsigned*>(&tile.value[2][i])[w];
      const unsigned x9 = reinterpret_cast<const unsigned*>(&tile.value[3][i])[w];
      const unsigned a0 = __byte_perm(x0, x1, 0x5410), a1 = __byte_perm(x0, x1, 0x7632);
      const unsigned a2 = __byte_perm(x8, x9, 0x5410), a3 = __byte_perm(x8, x9, 0x7632);
#pragma unroll
      for (int n = 0; n < kBlocks; ++n)
        cuda::mma_bf16(acc.out[n][i * 4 + w], a0, a1, a2, a3, weights[n][0], weights[n][1]);
    }
  }
}

// The dimension that accumulator block m holds in its row g (half 0) or g + 8 (half 1).
__device__ __forceinline__ int dimension(int m, int group, int half) {
  return m / 4 * 64 + group * 8 + m % 4 * 2 + half;
}

// S^T = K Q^T: lane (g, q) gets keys g, g + 8 and heads 2q, 2q + 1 of each block.
template <int kDim, int kBlocks>
__device__ __forceinline__ void multiply_keys(float (&logits)[kBlocks][4], const Gathered<kDim>& tile,
                                              const uint4 (&query)[kBlocks][kDim / 32]) {
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    float c[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4 b = query[n][i];
      cuda::mma_bf16(c, tile.key[0][i].x, tile.key[1][i].x, tile.key[0][i].y, tile.key[1][i].y, b.x, b.y);
      cuda::mma_bf16(c, tile.key[0][i].z, tile.key[1][i].z, tile.key[0][i].w, tile.key[1][i].w, b.z, b.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) logits[n][i] = c[i];
  }
}

// Turns logits into weights exp2(scale * logit - peak) in the layout of a B operand, and rescales what was
// accumulated before under a lower peak.
template <int kDim, int kBlocks>
__device__ __forceinline__ void weigh(Accumulator<kDim, kBlocks>& acc, float (&logits)[kBlocks][4], int index,
                                      float scale, unsigned (&weights)[kBlocks][2]) {
  const int group = (threadIdx.x & 31) / 4;
  const bool seen0 = __shfl_sync(0xffffffffu, index, group) >= 0;
  const bool seen8 = __shfl_sync(0xffffffffu, index, group + 8) >= 0;
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
    float* s = logits[n];
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      s[h] = seen0 ? s[h] * scale : -INFINITY;
      s[h + 2] = seen8 ? s[h + 2] * scale : -INFINITY;
      float peak = fmaxf(s[h], s[h + 2]);
#pragma unroll
      for (int offset = 4; offset < 32; offset *= 2)
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
      peak = fmaxf(peak, acc.peak[n][h]);
      factor[h] = cuda::softmax_weight(acc.peak[n][h], peak);
      acc.peak[n][h] = peak;
      s[h] = seen0 ? cuda::fast_exp2(s[h] - peak) : 0.0f;
      s[h + 2] = seen8 ? cuda::fast_exp2(s[h + 2] - peak) : 0.0f;
      acc.sum[n][h] = acc.sum[n][h] * factor[h] + s[h] + s[h + 2];
    }
    weights[n][0] = cuda::transpose8x8(cuda::pack_bf16(s[0], s[1]));
    weights[n][1] = cuda::transpose8x8(cuda::pack_bf16(s[2], s[3]));
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
      acc.out[n][m][0] *= factor[0];
      acc.out[n][m][1] *= factor[1];
      acc.out[n][m][2] *= factor[0];
      acc.out[n][m][3] *= factor[1];
    }
  }
}

}  // namespace gsa::decode
