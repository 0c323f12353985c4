#pragma once
// What gsa/cuda/{mma,grid}.h wrap, emulated on the CPU (see cuda_emulation.h).

#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>

#include "gsa/testing/cuda_emulation.h"

// CUDA's own names.
// NOLINTBEGIN(bugprone-*,readability-identifier-naming)

namespace gsa {
namespace emulation {

inline float f16_value(uint16_t bits) {
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}

// A lane's registers of A and B.
struct MmaOperands {
  uint32_t a[4], b[2];
};

// This lane's four elements of C += A B: rows lane / 4 and 8 below it, columns 2 (lane % 4) and the next.
inline void multiply_warp(float (&c)[4], const MmaOperands& mine, float (*value)(uint16_t)) {
  const uint64_t* all = warp_gather(to_word(&mine), 'm');
  const int group = lane() / 4, quad = lane() % 4;
  float a[2][16], b[2][16];
  for (int k = 0; k < 16; ++k) {
    const auto element = [&](uint32_t pair) {
      return value(static_cast<uint16_t>(k % 2 == 0 ? pair : pair >> 16));
    };
    for (int i = 0; i < 2; ++i) {
      a[i][k] = element(from_word<const MmaOperands*>(all[group * 4 + k % 8 / 2])->a[i + k / 8 * 2]);
      b[i][k] = element(from_word<const MmaOperands*>(all[(quad * 2 + i) * 4 + k % 8 / 2])->b[k / 8]);
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) c[i] += a[i / 2][k] * b[i % 2][k];
  warp_gather(0, 'n');  // the other lanes have read this one's operands
}

}  // namespace emulation

namespace cuda {

// ---- gsa/cuda/mma.h

inline uint4 load_stream(const void* pointer) {
  return *static_cast<const uint4*>(pointer);
}
inline void mma_bf16(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                     unsigned b1) {
  emulation::multiply_warp(c, {{a0, a1, a2, a3}, {b0, b1}}, emulation::bf16_value);
}
inline void mma_f16(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                    unsigned b1) {
  emulation::multiply_warp(c, {{a0, a1, a2, a3}, {b0, b1}}, emulation::f16_value);
}
inline unsigned pack_f16(float first, float second) {
  return c10::detail::fp16_ieee_from_fp32_value(first) |
         static_cast<unsigned>(c10::detail::fp16_ieee_from_fp32_value(second)) << 16;
}
inline uint2 e4m3_to_f16(unsigned four) {
  float x[4];
  for (int i = 0; i < 4; ++i)
    x[i] = c10::detail::fp8e4m3fn_to_fp32_value(static_cast<uint8_t>(four >> 8 * i));
  return {pack_f16(x[0], x[1]), pack_f16(x[2], x[3])};
}

inline uint32_t pack_bf16(float low, float high) {
  return c10::BFloat16(low).x | static_cast<uint32_t>(c10::BFloat16(high).x) << 16;
}
inline unsigned transpose8x8(unsigned x) {
  const uint64_t* all = emulation::warp_gather(x, 't');
  const int row = emulation::lane() / 4, column = emulation::lane() % 4 * 2;
  unsigned y = 0;
  for (int i = 0; i < 2; ++i)  // element (column + i, row) of the original
    y |= (static_cast<unsigned>(all[(column + i) * 4 + row / 2]) >> row % 2 * 16 & 0xffffu) << i * 16;
  return y;
}
inline void load_matrices(unsigned (&x)[4], const void* row) {
  const uint64_t* all = emulation::warp_gather(emulation::to_word(row), 'l');
  for (int i = 0; i < 4; ++i)
    std::memcpy(
        &x[i],
        emulation::from_word<const char*>(all[i * 8 + emulation::lane() / 4]) + emulation::lane() % 4 * 4, 4);
}
inline void load_matrices_transposed(unsigned (&x)[4], const void* row) {
  load_matrices(x, row);
  for (unsigned& word : x) word = transpose8x8(word);
}

// ---- gsa/cuda/cp_async.h: copies land at once

inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
inline void cp_async_16(uint32_t shared, const void* global, bool valid = true) {
  uint8_t* to = emulation::shared_base() + shared;
  if (valid)
    std::memcpy(to, global, 16);
  else
    std::memset(to, 0, 16);
}
inline void cp_async_commit() {}
template <int kInFlight>
void cp_async_wait() {}

// ---- gsa/cuda/grid.h: fibers see each other's writes in any case

inline void arrive_release(unsigned* counter) {
  ++*counter;
}
inline void wait_acquire(const unsigned* counter, unsigned target) {
  for (unsigned seen; (seen = *counter) < target;) emulation::wait_while(counter, ~0u, seen);
}
inline uint4 load_relaxed(const uint4* from) {
  return *from;
}
inline unsigned load_relaxed(const unsigned* from) {
  return *from;
}
inline ulonglong2 load_relaxed(const ulonglong2* from) {
  return *from;
}
inline unsigned long long load_relaxed(const unsigned long long* from) {
  return *from;
}
inline void store_relaxed(unsigned long long* to, unsigned long long x) {
  *to = x;
}
inline void store_relaxed(uint4* to, uint4 x) {
  *to = x;
}
inline void prefetch_line(const void*) {}
inline void prefetch_bytes(const void*, uint32_t) {}
inline void poll_again() {
  emulation::wait_for_others();
}
inline void wait_previous_kernel() {}
inline void launch_dependents() {}

}  // namespace cuda
}  // namespace gsa

// NOLINTEND(bugprone-*,readability-identifier-naming)
