// How the blocks of a cooperative grid wait for each other, and one grid for another.
#pragma once

#include "gsa/cuda/runtime.h"

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation_mma.h has its own

namespace gsa::cuda {

// Adds one to a counter in global memory, after all that this thread has written or seen written.
__device__ __forceinline__ void arrive_release(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// Waits until the counter has reached `target`; sees what those who arrived had written.
__device__ __forceinline__ void wait_acquire(const unsigned* counter, unsigned target) {
  unsigned seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < target);
}

// All that the stream's kernel before this one wrote is visible, if this one was launched to overlap it.
__device__ __forceinline__ void wait_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The stream's next kernel may start, if it was launched to overlap this one.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace gsa::cuda

#endif
