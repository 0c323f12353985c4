// One warp's part in sparse_attention's decode kernel: gathers 16 keys and values straight into the registers
// of mma.m16n8k16 and adds them to a running softmax. Keys are the rows of the first product and the columns
// of the second, a group's heads the columns of both.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "gsa/ops/sparse_attention/sparse_attention_decode_softmax.cuh"

namespace gsa::decode {

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
__device__ __forceinline__ void add_values(Softmax<kDim> (&softmax)[kBlocks], const Gathered<kDim>& tile,
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
        cuda::mma_bf16(softmax[n].out[i * 4 + w], a0, a1, a2, a3, weights[n][0], weights[n][1]);
    }
  }
}

// The dimension that block m of the output holds in its row g (half 0) or g + 8 (half 1).
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

}  // namespace gsa::decode
