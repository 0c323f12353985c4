// sigmoid_gate forward and backward: elementwise, so the only question is to keep enough 16-byte loads in
// flight. A thread issues all its loads before it uses the first; arithmetic is fp32.
#include "gsa/cuda/pack.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate_kernel.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate_one.cuh"

namespace gsa {
namespace gate {
namespace {

using cuda::Pack;
using cuda::store;
using cuda::to_float;

template <typename T>
__device__ __forceinline__ void gate_one_backward(const T& grad, const T& x, const T& gate, T* grad_x,
                                                  T* grad_gate) {
  const float g = to_float(grad), s = sigmoid(gate);
  store(grad_x, g * s);
  store(grad_gate, g * to_float(x) * s * (1.0f - s));
}

template <typename T, int kWidth, bool kBackward>
__global__ void __launch_bounds__(kThreads) sigmoid_gate_kernel(const SigmoidGateParams p) {
  using P = Pack<T, kWidth>;
  constexpr int kEach = kWidth == 1 ? kLoads * 16 / static_cast<int>(sizeof(T)) : kLoads;
  constexpr int kBatch = 4;  // accesses between the first load and the first use
  const int64_t packs = p.size / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kEach + threadIdx.x;
  const P* x = static_cast<const P*>(p.x);
  const P* gate = static_cast<const P*>(p.gate);
  const P* grad = static_cast<const P*>(p.grad_out);
  for (int batch = 0; batch < kEach; batch += kBatch) {
    P xs[kBatch], gates[kBatch], grads[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t at = first + static_cast<int64_t>(batch + i) * kThreads;
      if (at >= packs) continue;
      xs[i] = x[at];
      gates[i] = gate[at];
      if constexpr (kBackward) grads[i] = grad[at];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t at = first + static_cast<int64_t>(batch + i) * kThreads;
      if (at >= packs) continue;
      P a, b;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        if constexpr (kBackward) {
          gate_one_backward(grads[i].at[e], xs[i].at[e], gates[i].at[e], &a.at[e], &b.at[e]);
        } else {
          gate_one(xs[i].at[e], gates[i].at[e], &a.at[e]);
        }
      }
      static_cast<P*>(kBackward ? p.grad_x : p.out)[at] = a;
      if constexpr (kBackward) static_cast<P*>(p.grad_gate)[at] = b;
    }
  }
  // The last elements, fewer than a pack.
  if (blockIdx.x != 0 || threadIdx.x >= p.size - packs * kWidth) return;
  const int64_t at = packs * kWidth + threadIdx.x;
  const T* xe = static_cast<const T*>(p.x);
  const T* ge = static_cast<const T*>(p.gate);
  if constexpr (kBackward) {
    gate_one_backward(static_cast<const T*>(p.grad_out)[at], xe[at], ge[at], static_cast<T*>(p.grad_x) + at,
                      static_cast<T*>(p.grad_gate) + at);
  } else {
    gate_one(xe[at], ge[at], static_cast<T*>(p.out) + at);
  }
}

bool aligned(const SigmoidGateParams& p) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.gate) |
                        reinterpret_cast<uintptr_t>(p.grad_out) | reinterpret_cast<uintptr_t>(p.out) |
                        reinterpret_cast<uintptr_t>(p.grad_x) | reinterpret_cast<uintptr_t>(p.grad_gate);
  return all % 16 == 0;
}

template <typename T, bool kBackward>
cudaError_t launch_type(const SigmoidGateParams& p, cudaStream_t stream) {
  if (p.size == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>(blocks(p.size, p.type));
  if (aligned(p)) {
    sigmoid_gate_kernel<T, 16 / sizeof(T), kBackward><<<grid, kThreads, 0, stream>>>(p);
  } else {
    sigmoid_gate_kernel<T, 1, kBackward><<<grid, kThreads, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

template <bool kBackward>
cudaError_t launch(const SigmoidGateParams& p, cudaStream_t stream) {
  return dispatch(p.type, [&]<class T>() { return launch_type<T, kBackward>(p, stream); });
}

}  // namespace
}  // namespace gate

cudaError_t launch_sigmoid_gate_forward(const SigmoidGateParams& params, cudaStream_t stream) {
  return gate::launch<false>(params, stream);
}

cudaError_t launch_sigmoid_gate_backward(const SigmoidGateParams& params, cudaStream_t stream) {
  return gate::launch<true>(params, stream);
}

}  // namespace gsa
