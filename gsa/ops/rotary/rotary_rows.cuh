// Rotating the rows of tokens and heads: the part that rotary shares with kernels that write elsewhere.
#pragma once

#include <cstdint>

#include "gsa/cuda/pack.h"
#include "gsa/ops/rotary/rotary_params.h"

namespace gsa::rotary_rows {

constexpr int kThreads = 256;

// A row in pieces of two packs, one for each thread: those that turn together, then neighbours that pass.
__host__ __device__ inline int pieces(const RotaryParams& p, int width) {
  return p.half / width + (p.dim - 2 * p.half + 2 * width - 1) / (2 * width);
}

inline int64_t threads(const RotaryParams& p, int width) {
  return p.batch * p.tokens * p.heads * pieces(p, width);
}

// One of `parts` equal parts of a row; neighbouring threads have neighbouring parts, then heads, then tokens.
struct RowPart {
  int64_t batch, token;
  int head, part;

  __device__ __forceinline__ RowPart(const RotaryParams& p, int parts, int64_t thread) {
    const int of_token = parts * p.heads;
    const int64_t row = thread / of_token;
    const int rest = static_cast<int>(thread - row * of_token);
    batch = row / p.tokens;
    token = row - batch * p.tokens;
    head = rest / parts;
    part = rest - head * parts;
  }
  __device__ __forceinline__ int64_t row_at(const RotaryStrides& strides) const {
    return batch * strides.batch + token * strides.token + head * strides.head;
  }
};

// Piece number `thread` of threads(p, kWidth). write(offset, pack) stores kWidth numbers at an offset of
// `out`, which may be x.
template <typename T, int kWidth, class Write>
__device__ __forceinline__ void rotate_piece(const RotaryParams& p, int64_t thread, const Write& write) {
  using P = cuda::Pack<T, kWidth>;
  constexpr int kAngles = kWidth < 4 ? kWidth : 4;  // fp32 numbers in an access
  using Angles = cuda::Pack<float, kAngles>;
  const RowPart row(p, pieces(p, kWidth), thread);
  const int turning = p.half / kWidth;
  const bool turns = row.part < turning;
  const int first = turns ? row.part * kWidth : 2 * p.half + (row.part - turning) * 2 * kWidth;
  const int second = first + (turns ? p.half : kWidth);
  const T* x = static_cast<const T*>(p.x) + row.row_at(p.x_strides);
  P a = *reinterpret_cast<const P*>(x + first), b = a;
  if (second < p.dim) b = *reinterpret_cast<const P*>(x + second);
  if (turns) {
    Angles cos[kWidth / kAngles], sin[kWidth / kAngles];
    const int64_t at = row.token * p.half + first;
#pragma unroll
    for (int i = 0; i < kWidth / kAngles; ++i) {
      cos[i] = *reinterpret_cast<const Angles*>(p.cos + at + i * kAngles);
      sin[i] = *reinterpret_cast<const Angles*>(p.sin + at + i * kAngles);
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float u = cuda::to_float(a.at[e]), v = cuda::to_float(b.at[e]);
      const float c = cos[e / kAngles].at[e % kAngles], s = sin[e / kAngles].at[e % kAngles];
      cuda::store(&a.at[e], fmaf(-v, s, u * c));
      cuda::store(&b.at[e], fmaf(u, s, v * c));
    }
  }
  const int64_t out = row.row_at(p.out_strides);
  write(out + first, a);
  if (second < p.dim) write(out + second, b);
}

template <typename T, int kWidth>
struct StorePack {
  void* out;
  __device__ __forceinline__ void operator()(int64_t at, const cuda::Pack<T, kWidth>& pack) const {
    *reinterpret_cast<cuda::Pack<T, kWidth>*>(static_cast<T*>(out) + at) = pack;
  }
};

inline bool aligned(const RotaryStrides& strides, int width) {
  return strides.batch % width == 0 && strides.token % width == 0 && strides.head % width == 0;
}

// Whether rows can be read, and written in packs of `out_bytes`, `width` elements at a time.
inline bool aligned(const RotaryParams& p, int width, int out_bytes = 16) {
  const uintptr_t read = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.cos) |
                         reinterpret_cast<uintptr_t>(p.sin);
  return read % 16 == 0 && reinterpret_cast<uintptr_t>(p.out) % static_cast<unsigned>(out_bytes) == 0 &&
         aligned(p.x_strides, width) && aligned(p.out_strides, width) && p.half % width == 0 &&
         p.dim % width == 0;
}

}  // namespace gsa::rotary_rows
