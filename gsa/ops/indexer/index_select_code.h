// Scores in 16 bits, for activations between 0 and 1: then a query's scores lie between the sum of its
// negative weights and that of its positive ones (docs/kernels/index_select.md, "Stored scores").
//
// With weights scaled by a power of two, which leaves exact sums exact, sums that begin at kCodeOrigin lie in
// [2, 4). A score's code is the upper 15 bits of the sum's fraction: one selection of bytes for two scores.
#pragma once

#include <cstdint>

#include "gsa/cuda/runtime.h"

namespace gsa::fused_select {

// NaN has code 0, the lowest score there is kLowestCode, and no other score has: so each has a bin of 32
// codes for itself.
constexpr uint32_t kLowestCode = 63;
constexpr float kCodeOrigin = 2.0f + 0x1p-8f - 0x1p-22f;
constexpr float kNaNSum = 2.0f;
constexpr float kCodeStep = 0x1p-14f;  // between the sums of neighbouring codes

// What a query's weights are multiplied by: its scores then differ by at most 1.9, so that codes are below
// 0x7c00 and finite as half floats. 0: weights out of range, its codes mean nothing.
__device__ __forceinline__ float code_scale(float sum_of_magnitudes) {
  if (sum_of_magnitudes == 0.0f) return 1.0f;
  if (!(sum_of_magnitudes > 0x1p-60f && sum_of_magnitudes < 0x1p60f)) return 0.0f;
  const float power = __uint_as_float((254u - (__float_as_uint(sum_of_magnitudes) >> 23)) << 23);
  return sum_of_magnitudes * power <= 1.9f ? power : 0.5f * power;
}

__device__ __forceinline__ uint32_t code_pair(float low_sum, float high_sum) {
  return __byte_perm(__float_as_uint(low_sum), __float_as_uint(high_sum), 0x6521);
}

// Ones in the halves of a pair of codes that are at least as large as those of `bound`.
__device__ __forceinline__ uint32_t at_least(uint32_t pair, uint32_t bound) {
#ifdef GSA_EMULATE_CUDA
  return ((pair & 0xffffu) >= (bound & 0xffffu) ? 0xffffu : 0u) |
         (pair >> 16 >= bound >> 16 ? 0xffff0000u : 0u);
#else
  uint32_t mask;
  asm("set.ge.u32.f16x2 %0, %1, %2;" : "=r"(mask) : "r"(pair), "r"(bound));
  return mask;
#endif
}

// Eight codes side by side: a bit for each that is at least `bound`, which stands in both halves; above these
// eight the bits mean nothing.
__device__ __forceinline__ uint32_t bits_at_least(uint4 eight, uint32_t bound) {
  uint32_t bits = at_least(eight.x, bound) & 0x00020001u;
  bits |= at_least(eight.y, bound) & 0x00080004u;
  bits |= at_least(eight.z, bound) & 0x00200010u;
  bits |= at_least(eight.w, bound) & 0x00800040u;
  return bits | bits >> 16;
}

constexpr int kCodeBins = 1024;
constexpr int kBinCodes = 32;

// Counts two codes in a histogram in shared memory. A bin's address by one multiply-add from the bits of its
// code, where the compiler would shift, mask and add.
__device__ __forceinline__ void count_pair(uint32_t* bins, uint32_t pair) {
#ifdef GSA_EMULATE_CUDA
  ++bins[(pair & 0xffffu) / kBinCodes];
  ++bins[(pair >> 16) / kBinCodes];
#else
  const auto base = static_cast<uint32_t>(__cvta_generic_to_shared(bins));
  asm volatile(
      "{\n.reg .u32 bits, at;\n"
      "and.b32 bits, %0, 0x7fe0;\n"
      "mad.hi.u32 at, bits, 0x20000000, %1;\n"
      "red.shared.add.u32 [at], 1;\n"
      "and.b32 bits, %0, 0x7fe00000;\n"
      "mad.hi.u32 at, bits, 0x2000, %1;\n"
      "red.shared.add.u32 [at], 1;\n}"
      :
      : "r"(pair), "r"(base)
      : "memory");
#endif
}

// Sums over codes and their squares, from the codes' high bytes h and low bytes l; up to kMostCodes of them.
struct CodeSums {
  uint32_t all = 0;
  uint32_t hh = 0;
  uint32_t hl = 0;
  uint32_t ll = 0;

  __device__ __forceinline__ void enter(uint32_t a, uint32_t b) {
    const uint32_t high = __byte_perm(a, b, 0x7531), low = __byte_perm(a, b, 0x6420);
    hh = __dp4a(high, high, hh);
    hl = __dp4a(high, low, hl);
    ll = __dp4a(low, low, ll);
    all = __dp2a_lo(a, 0x0101u, __dp2a_lo(b, 0x0101u, all));
  }
};

}  // namespace gsa::fused_select
