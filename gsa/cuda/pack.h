// Elements that move together, and fp32 arithmetic on elements of any type.
#pragma once

#include "gsa/cuda/runtime.h"

#ifndef GSA_EMULATE_CUDA
#include <cuda_fp16.h>
#endif

namespace gsa::cuda {

// kWidth elements that move as one access: 16 bytes, or a single element where alignment is missing.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void store(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store(__half* to, float x) {
  *to = __float2half_rn(x);
}
__device__ __forceinline__ void store(__nv_bfloat16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

}  // namespace gsa::cuda
