// The bulk tensor copy engine (TMA) of sm_90: making tensor maps on the host, loading boxes on the device.
#pragma once

#include <cstdint>

#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/runtime.h"

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation_sm90.h has its own

namespace gsa::cuda {

// Describes a row-major bf16 tensor to the copy engine. sizes[0] is the contiguous dimension;
// strides_bytes[i] is the distance between neighbours of dimension i + 1 (multiples of 16); box[i] the extent
// of one load. Coordinates outside the tensor load zeros. The driver is reached through the runtime, so
// nothing links against libcuda.
inline cudaError_t make_tensor_map_bf16(CUtensorMap* map, const void* base, int rank, const uint64_t* sizes,
                                        const uint64_t* strides_bytes, const uint32_t* box,
                                        CUtensorMapSwizzle swizzle) {
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
  const uint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(symbol)(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<uint32_t>(rank), const_cast<void*>(base),
      reinterpret_cast<const cuuint64_t*>(sizes), reinterpret_cast<const cuuint64_t*>(strides_bytes), box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Load one box; its bytes complete on `full`. Coordinates count elements, contiguous dimension first.
__device__ __forceinline__ void tma_load_3d(void* shared, const CUtensorMap* map, uint64_t* full, int c0,
                                            int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(mbarrier_address(shared)),
      "l"(map), "r"(mbarrier_address(full)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

__device__ __forceinline__ void tma_load_4d(void* shared, const CUtensorMap* map, uint64_t* full, int c0,
                                            int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], "
      "[%2];" ::"r"(mbarrier_address(shared)),
      "l"(map), "r"(mbarrier_address(full)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Loads `bytes` that lie together and are read once: the second-level cache drops them first. Both places and
// the number are multiples of 16.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* full) {
  uint64_t evict_first;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(evict_first));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], "
      "%4;" ::"r"(mbarrier_address(shared)),
      "l"(global), "r"(bytes), "r"(mbarrier_address(full)), "l"(evict_first)
      : "memory");
}

}  // namespace gsa::cuda

#endif
