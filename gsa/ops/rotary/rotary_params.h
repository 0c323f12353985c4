// What rotary hands to its CUDA kernels. Plain data: no torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "gsa/cuda/element_type.h"

namespace gsa {

// Elements between neighbours of an array [B,T,H,E]; the last dimension is contiguous.
struct RotaryStrides {
  int64_t batch = 0, token = 0, head = 0;
};

struct RotaryParams {
  const void* x = nullptr;     // [B,T,H,E] of `type`
  const float* cos = nullptr;  // [T, half]
  const float* sin = nullptr;  // [T, half]
  void* out = nullptr;         // [B,T,H,E] of `type`
  RotaryStrides x_strides, out_strides;
  int64_t batch = 0, tokens = 0;
  int heads = 0, dim = 0;
  int half = 0;  // the leading 2 * half dimensions turn
  ElementType type = ElementType::kFloat;
};

}  // namespace gsa
