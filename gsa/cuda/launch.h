// Kernel launches and dynamic shared memory, written so that the host emulation can take their place.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gsa/cuda/runtime.h"

namespace gsa::cuda {

// How many multiprocessors the current device has.
inline cudaError_t count_multiprocessors(int* count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device) : error;
}

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation.h has its own

// kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...)
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  kernel<<<blocks, threads, shared_bytes, stream>>>(arguments...);
  return cudaGetLastError();
}

// The same, but the kernel may start before the one ahead of it in the stream ends: it has to wait for what
// that one writes (wait_previous_kernel, grid.h).
template <class... Parameters, class... Arguments>
cudaError_t launch_early(void (*kernel)(Parameters...), int blocks, int threads, size_t shared_bytes,
                         cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// The block's dynamic shared memory.
template <class T>
__device__ __forceinline__ T& shared_memory() {
  extern __shared__ __align__(1024) uint8_t raw[];
  return *reinterpret_cast<T*>(raw);
}

// Waits until `kThreads` threads, the caller among them, stand at barrier `kBarrier` (1 .. 15; 0 is
// __syncthreads).
template <int kThreads>
__device__ __forceinline__ void named_barrier(int barrier) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

#endif

}  // namespace gsa::cuda
