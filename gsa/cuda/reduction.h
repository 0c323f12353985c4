// Reductions over the lanes of a warp. Every lane of the warp takes part and receives the result.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"

namespace gsa::cuda {

// Over groups of kWidth neighbouring lanes (a power of two): 32 is the warp, 4 the lanes that share an
// accumulator row.
template <int kWidth = 32>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2)
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
  return x;
}

template <int kWidth = 32>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWidth / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Sum over the lanes before this one.
__device__ __forceinline__ int warp_exclusive_sum(int x) {
  const int lane = threadIdx.x & 31;
  int sum = x;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  return sum - x;
}

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation.h has its own

// 2^x by the special function unit (relative error 2^-22); -inf gives 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh by the special function unit (error 2^-11).
__device__ __forceinline__ float fast_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

// exp2(a - peak) where peak is the larger; nothing against nothing is 0.
__device__ __forceinline__ float softmax_weight(float a, float peak) {
  return a == -INFINITY ? 0.0f : fast_exp2(a - peak);
}

}  // namespace gsa::cuda
