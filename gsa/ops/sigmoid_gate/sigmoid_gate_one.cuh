// The gate of one element, as every kernel computes it.
#pragma once

#include "gsa/cuda/pack.h"

namespace gsa::gate {

// fp32 results need the accurate functions; for 16-bit results the fast ones are exact enough and keep the
// arithmetic below the time the memory takes.
template <typename T>
__device__ __forceinline__ float sigmoid(T x) {
  return __fdividef(1.0f, 1.0f + __expf(-cuda::to_float(x)));
}
template <>
__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

template <typename T>
__device__ __forceinline__ void gate_one(const T& x, const T& gate, T* out) {
  cuda::store(out, cuda::to_float(x) * sigmoid(gate));
}

}  // namespace gsa::gate
