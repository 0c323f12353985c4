#pragma once
// CUDA's vector and number types and its arithmetic on the CPU; part of cuda_emulation.h.

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

// NOLINTBEGIN(bugprone-*,readability-identifier-naming): CUDA's own names

namespace gsa {

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline int2 make_int2(int x, int y) {
  return {x, y};
}
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};
enum { __NV_SATFINITE, __NV_E4M3 };

template <class A, class B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

using std::isnan;

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int __popc(uint32_t x) {
  return __builtin_popcount(x);
}
inline int __clz(uint32_t x) {
  return x == 0 ? 32 : __builtin_clz(x);
}
inline int __ffs(uint32_t x) {
  return __builtin_ffs(static_cast<int>(x));
}
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xffu) << 8 * i;
  return result;
}
inline uint32_t __dp4a(uint32_t a, uint32_t b, uint32_t sum) {
  for (int i = 0; i < 32; i += 8) sum += (a >> i & 0xffu) * (b >> i & 0xffu);
  return sum;
}
inline uint32_t __dp2a_lo(uint32_t a, uint32_t b, uint32_t sum) {
  return sum + (a & 0xffffu) * (b & 0xffu) + (a >> 16) * (b >> 8 & 0xffu);
}
inline float __saturatef(float x) {
  return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;  // NaN gives 0
}
namespace emulation {
inline float bf16_value(uint16_t bits) {
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}
}  // namespace emulation
inline float __bfloat162float(__nv_bfloat16 x) {
  return emulation::bf16_value(x.bits);
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {c10::BFloat16(x).x};
}
inline float __half2float(__half x) {
  return c10::Half(x.bits, c10::Half::from_bits());
}
inline __half __float2half_rn(float x) {
  return {c10::Half(x).x};
}
// To e4m3: the nearest, saturating.
inline uint8_t __nv_cvt_float_to_fp8(float x, int, int) {
  constexpr float kLargest = 448;
  return c10::Float8_e4m3fn(isnan(x) ? x : std::fmax(std::fmin(x, kLargest), -kLargest)).x;
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float rounded_down(double exact) {
  const float nearest = static_cast<float>(exact);
  return nearest > exact ? std::nextafter(nearest, -std::numeric_limits<float>::infinity()) : nearest;
}
inline float __fadd_rd(float x, float y) {
  return rounded_down(static_cast<double>(x) + y);
}
inline float __fmaf_rd(float x, float y, float z) {
  return rounded_down(std::fma(static_cast<double>(x), y, z));
}
inline int __float2int_rd(float x) {
  if (isnan(x)) return 0;
  if (x >= 2147483648.0f) return INT32_MAX;
  return x < -2147483648.0f ? INT32_MIN : static_cast<int>(std::floor(x));
}
inline int __float2int_rz(float x) {
  return __float2int_rd(x < 0 ? std::ceil(x) : x);
}

}  // namespace gsa

// NOLINTEND(bugprone-*,readability-identifier-naming)
