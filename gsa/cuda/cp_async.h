// Asynchronous 16-byte copies from global to shared memory (sm_80 and later): the gather's tool, one address
// a thread.
#pragma once

#include <cstdint>

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation_mma.h has its own

namespace gsa::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 aligned bytes past L1; with `valid` false nothing is read and the 16 bytes become zero.
__device__ __forceinline__ void cp_async_16(uint32_t shared, const void* global, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Copies 4 aligned bytes; with `valid` false they become zero.
__device__ __forceinline__ void cp_async_4(uint32_t shared, const void* global, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kInFlight>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
}

// Arrives at an mbarrier once all copies this thread has issued so far have landed; the arrival is one of the
// barrier's expected count.
__device__ __forceinline__ void cp_async_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

}  // namespace gsa::cuda

#endif
