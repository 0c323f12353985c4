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

// Reads and writes that go to the device's memory each time, without an order among themselves.
__device__ __forceinline__ uint4 load_relaxed(const uint4* from) {
  uint4 x;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from)
               : "memory");
  return x;
}
__device__ __forceinline__ unsigned load_relaxed(const unsigned* from) {
  unsigned x;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ ulonglong2 load_relaxed(const ulonglong2* from) {
  ulonglong2 x;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(x.x), "=l"(x.y) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* from) {
  unsigned long long x;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(x) : "l"(from) : "memory");
  return x;
}
__device__ __forceinline__ void store_relaxed(unsigned long long* to, unsigned long long x) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(x) : "memory");
}

__device__ __forceinline__ void store_relaxed(uint4* to, uint4 x) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

// Brings the 128 bytes around `at` to the second-level cache.
__device__ __forceinline__ void prefetch_line(const void* at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}
// The same for a multiple of 16 bytes, from a multiple of 16 on, by the copy engine.
__device__ __forceinline__ void prefetch_bytes(const void* at, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes) : "memory");
}

// Between two looks at the same place.
__device__ __forceinline__ void poll_again() {}

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
