// What sigmoid_gate hands to its CUDA kernels. Plain data: no torch, no CUDA headers.
#pragma once

#include <cstdint>

#include "gsa/cuda/element_type.h"

namespace gsa {

// All arrays hold `size` contiguous elements of `type`.
struct SigmoidGateParams {
  const void* x = nullptr;
  const void* gate = nullptr;
  const void* grad_out = nullptr;  // backward only
  void* out = nullptr;             // forward: x * sigmoid(gate)
  void* grad_x = nullptr;          // backward: grad_out * sigmoid(gate)
  void* grad_gate = nullptr;       // backward: grad_out * x * sigmoid(gate) * (1 - sigmoid(gate))
  int64_t size = 0;
  ElementType type = ElementType::kFloat;
};

namespace gate {

constexpr int kThreads = 256;
constexpr int kLoads = 4;  // 16-byte loads of each array that a thread has in flight

constexpr int elements_per_load(ElementType type) {
  return type == ElementType::kFloat ? 4 : 8;
}

// One pass over the arrays without a loop: the blocks that cover `size`.
constexpr int64_t blocks(int64_t size, ElementType type) {
  const int64_t each = int64_t{kThreads} * kLoads * elements_per_load(type);
  return (size + each - 1) / each;
}

}  // namespace gate
}  // namespace gsa
