// Warpgroup matrix products of Hopper (sm_90a): D[64, N] += A[64, 16] * B[16, N], bf16 operands, fp32
// accumulators.
//
// The 128 threads of a warpgroup issue each call together. Thread `lane` of warp `w` (0..3) holds of D the
// elements
//   d[4 * j + 0, 1]: row 16 w + lane / 4,     columns 8 j + 2 (lane % 4) + {0, 1}
//   d[4 * j + 2, 3]: row 16 w + lane / 4 + 8, the same columns
// and, where A comes from registers, of each 16-column step the packed pairs
//   a[0]: row lane / 4, columns 2 (lane % 4) + {0, 1}; a[1]: row + 8; a[2], a[3]: the same rows, columns + 8,
// so that accumulators 8 s .. 8 s + 7 of one product, packed pairwise, are step s of the next one's A.
//
// Operands in shared memory are described by 64-bit descriptors over 128-byte-swizzled atoms of 8 rows x 128
// bytes: the 16-byte chunk c of row r lies at chunk c ^ (r % 8). Atoms are aligned to 1024 bytes.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"

namespace gsa::cuda {

// Where 16-byte chunk `chunk` (0..7) of row `row` lies in a 128-byte-swizzled panel of 64 bf16 columns: a
// byte offset.
__host__ __device__ constexpr uint32_t swizzle_128b(uint32_t row, uint32_t chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// Descriptor of a 128-byte-swizzled operand that starts at shared address `address`.
//   K-major (rows = M or N, the 128 bytes run along K): stride_bytes = distance of row groups of 8;
//   leading_bytes is not read. MN-major (rows = K, the 128 bytes run along M or N): stride_bytes = distance
//   of groups of 8 K rows, leading_bytes = distance of panels of 64 columns.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t address, uint32_t leading_bytes,
                                                     uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128B = uint64_t{1} << 62;
  return kSwizzle128B | (uint64_t((stride_bytes & 0x3FFFF) >> 4) << 32) |
         (uint64_t((leading_bytes & 0x3FFFF) >> 4) << 16) | uint64_t((address & 0x3FFFF) >> 4);
}

#ifndef GSA_EMULATE_CUDA  // gsa/testing/cuda_emulation_sm90.h has its own

// Orders register writes of accumulators and A fragments before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Closes a group of products; wgmma_wait<N> blocks until at most N groups are in flight.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kInFlight>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
}

// Keeps the compiler from moving accesses to accumulators across this point while products are in flight.
template <int kCount>
__device__ __forceinline__ void wgmma_pin(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Makes ordinary writes to shared memory visible to the products (the asynchronous proxy).
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Gives registers of this warpgroup back, or takes them from the block's pool; a multiple of 8.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void acquire_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The products. `accumulate` false overwrites D. kTransposeB true takes B as MN-major rows of K.
template <int N>
struct Wgmma;

#define GSA_OUT8(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

template <>
struct Wgmma<32> {
  template <bool kTransposeB>
  static __device__ __forceinline__ void ss(float (&d)[16], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, %16, %17, p, 1, 1, 0, %19;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8)
        : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }

  template <bool kTransposeB>
  static __device__ __forceinline__ void rs(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
        "}, {%16, %17, %18, %19}, %20, p, 1, 1, %22;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }
};

template <>
struct Wgmma<64> {
  template <bool kTransposeB>
  static __device__ __forceinline__ void ss(float (&d)[32], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, %35;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8), GSA_OUT8(d, 16), GSA_OUT8(d, 24)
        : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }

  template <bool kTransposeB>
  static __device__ __forceinline__ void rs(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8), GSA_OUT8(d, 16), GSA_OUT8(d, 24)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }
};

template <>
struct Wgmma<128> {
  template <bool kTransposeB>
  static __device__ __forceinline__ void ss(float (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, %67;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8), GSA_OUT8(d, 16), GSA_OUT8(d, 24), GSA_OUT8(d, 32), GSA_OUT8(d, 40),
          GSA_OUT8(d, 48), GSA_OUT8(d, 56)
        : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }

  template <bool kTransposeB>
  static __device__ __forceinline__ void rs(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                            bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"
        : GSA_OUT8(d, 0), GSA_OUT8(d, 8), GSA_OUT8(d, 16), GSA_OUT8(d, 24), GSA_OUT8(d, 32), GSA_OUT8(d, 40),
          GSA_OUT8(d, 48), GSA_OUT8(d, 56)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(kTransposeB)));
  }
};

#undef GSA_OUT8

#endif  // GSA_EMULATE_CUDA

}  // namespace gsa::cuda
