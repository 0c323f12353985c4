// Thin wrappers over the shared-memory barrier object (mbarrier) of sm_90, as a full/empty ring uses it.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"

namespace gsa::cuda {

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation_sm90.h has its own

// Address of a barrier, or of anything in shared memory, as the instructions here take it.
__device__ __forceinline__ uint32_t mbarrier_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier_address(barrier)), "r"(arrivals));
}

// Makes freshly initialised barriers visible to the copy engine; follow with __syncthreads().
__device__ __forceinline__ void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(mbarrier_address(barrier)) : "memory");
}

// One arrival that also announces how many bytes the copy engine will deliver in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Returns once the phase of the given parity has completed.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra retry;\n"
      "finished:\n"
      "}\n" ::"r"(mbarrier_address(barrier)),
      "r"(parity)
      : "memory");
}

// The same where other CTAs of the cluster have sent the bytes.
__device__ __forceinline__ void mbarrier_wait_cluster(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra retry;\n"
      "finished:\n"
      "}\n" ::"r"(mbarrier_address(barrier)),
      "r"(parity)
      : "memory");
}

// Whether the phase of the given parity has completed.
__device__ __forceinline__ bool mbarrier_test(const uint64_t* barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n"
      "selp.u32 %0, 1, 0, done;\n"
      "}\n"
      : "=r"(done)
      : "r"(mbarrier_address(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

#endif

// Position in a ring of kStages slots: which slot, and the parity its barriers have on this lap.
template <int kStages>
struct RingPosition {
  int slot = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

}  // namespace gsa::cuda
