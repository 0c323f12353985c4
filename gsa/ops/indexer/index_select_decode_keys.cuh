// What the decode kernel's index keys are made of: how a lane's 16-byte loads meet the query in products.
//
// A product's dimensions may come in any order, the same for keys and queries. A lane (quad q of four) loads
// whole 16-byte pieces of a key row, 16 / kBytes dimensions each; of the query's 16-byte pieces of bf16 that
// belong to them, the one numbered `chunk` starts at first_dimension(chunk) for quad 0.
#pragma once

#include "gsa/cuda/mma.h"
#include "gsa/ops/indexer/index_select_decode_state.cuh"

namespace gsa::decode {

struct Bf16Keys {
  using Element = __nv_bfloat16;
  static constexpr int kBytes = 2;
  static constexpr int kMma = 4;  // sixteens of keys that a warp scores at a time
  static constexpr bool kScaledQueries = false;

  __device__ static constexpr int first_dimension(int chunk) { return chunk * 32; }

  // Sixteen keys, rows 8 apart in two registers, times eight columns: one piece of the query.
  __device__ static __forceinline__ void multiply(float (&c)[4], const uint4& rows0, const uint4& rows8,
                                                  const uint4* query) {
    const uint4 b = *query;
    cuda::mma_bf16(c, rows0.x, rows8.x, rows0.y, rows8.y, b.x, b.y);
    cuda::mma_bf16(c, rows0.z, rows8.z, rows0.w, rows8.w, b.z, b.w);
  }

  // Eight keys times sixteen rows of the query's fragments; two products for a 16-byte piece.
  __device__ static __forceinline__ void multiply_rows(float (&c)[4], const unsigned (*query)[4],
                                                       const uint4& keys) {
    cuda::mma_bf16(c, query[0][0], query[0][1], query[0][2], query[0][3], keys.x, keys.y);
    cuda::mma_bf16(c, query[1][0], query[1][1], query[1][2], query[1][3], keys.z, keys.w);
  }

  __device__ static __forceinline__ float2 unscale(float scale, const float2*) { return {scale, scale}; }
};

// e4m3 has an exact image in f16, by one instruction for two numbers, NaN included. To bf16 there is none: it
// would take four instructions through fp32, or arithmetic on the bits that loses NaN. So products are of
// f16, and each column of the query is brought into f16's range by a power of two (scale_queries).
struct Float8Keys {
  using Element = unsigned char;
  static constexpr int kBytes = 1;
  static constexpr int kMma = 2;  // with 4 the converted keys and the scores do not fit the registers
  static constexpr bool kScaledQueries = true;

  __device__ static constexpr int first_dimension(int chunk) { return chunk / 2 * 64 + chunk % 2 * 8; }

  // Two pieces of the query: a load holds twice the dimensions.
  __device__ static __forceinline__ void multiply(float (&c)[4], const uint4& rows0, const uint4& rows8,
                                                  const uint4* query) {
    multiply_four(c, rows0.x, rows8.x, query[0].x, query[0].y);
    multiply_four(c, rows0.y, rows8.y, query[0].z, query[0].w);
    multiply_four(c, rows0.z, rows8.z, query[32].x, query[32].y);
    multiply_four(c, rows0.w, rows8.w, query[32].z, query[32].w);
  }

  __device__ static __forceinline__ void multiply_four(float (&c)[4], unsigned row0, unsigned row8,
                                                       unsigned b0, unsigned b1) {
    const uint2 low = cuda::e4m3_to_f16(row0), high = cuda::e4m3_to_f16(row8);
    cuda::mma_f16(c, low.x, high.x, low.y, high.y, b0, b1);
  }

  __device__ static __forceinline__ void multiply_rows(float (&c)[4], const unsigned (*query)[4],
                                                       const uint4& keys) {
    const unsigned words[4] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint2 pairs = cuda::e4m3_to_f16(words[i]);
      cuda::mma_f16(c, query[i][0], query[i][1], query[i][2], query[i][3], pairs.x, pairs.y);
    }
  }

  __device__ static __forceinline__ float2 unscale(float scale, const float2* column_scales) {
    return {scale * column_scales->x, scale * column_scales->y};
  }
};

// Turns the query's pieces from bf16 to f16, each column times the power of two that takes its largest
// number to [2^14, 2^15), and leaves the inverse in column_scales. Exact for numbers down to 2^-31 of the
// largest; smaller ones are off by up to 2^-39 of it, below what a sum in fp32 rounds away beside the
// largest. Infinities and NaN stay. One warp for eight columns, from the last warp on.
template <int kChunks, int kColumns>
__device__ inline void scale_queries(uint4* query_pieces, float* column_scales) {
  const int lane = threadIdx.x & 31, block = kWarps - 1 - static_cast<int>(threadIdx.x) / 32;
  if (block >= kColumns) return;
  uint4* pieces = query_pieces + block * kChunks * 32 + lane;
  unsigned largest = 0;
  const auto see = [&](unsigned pair) {
    const unsigned first = pair & 0x7fffu, second = pair >> 16 & 0x7fffu;
    if (first < 0x7f80u) largest = max(largest, first);
    if (second < 0x7f80u) largest = max(largest, second);
  };
  for (int i = 0; i < kChunks; ++i) {
    const uint4 piece = pieces[i * 32];
    see(piece.x);
    see(piece.y);
    see(piece.z);
    see(piece.w);
  }
  largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
  largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
  constexpr int kBias = 127, kTop = 14, kMaxShift = 120;  // the inverse stays a normal number
  const int shift = min(kTop + kBias - static_cast<int>(largest >> 7), kMaxShift);
  const float factor = __uint_as_float(static_cast<unsigned>(kBias + shift) << 23);
  const auto convert = [&](unsigned pair) {
    return cuda::pack_f16(__uint_as_float(pair << 16) * factor, __uint_as_float(pair & 0xffff0000u) * factor);
  };
  for (int i = 0; i < kChunks; ++i) {
    const uint4 piece = pieces[i * 32];
    pieces[i * 32] = make_uint4(convert(piece.x), convert(piece.y), convert(piece.z), convert(piece.w));
  }
  if (lane % 4 == 0)
    column_scales[block * 8 + lane / 4] = __uint_as_float(static_cast<unsigned>(kBias - shift) << 23);
}

}  // namespace gsa::decode
