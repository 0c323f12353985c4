// rotary for any GPU from sm_80 on: memory speed is all there is to reach, so a thread does little (two packs
// that turn together, their angles) and many fit a multiprocessor. Arithmetic is fp32.
#include "gsa/cuda/launch.h"
#include "gsa/ops/rotary/rotary_kernel.h"
#include "gsa/ops/rotary/rotary_rows.cuh"

namespace gsa {
namespace rotary_rows {
namespace {

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) rotary_kernel(const RotaryParams p, const int64_t work) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (thread < work) rotate_piece<T, kWidth>(p, thread, StorePack<T, kWidth>{p.out});
}

template <typename T, int kWidth>
cudaError_t launch_width(const RotaryParams& p, cudaStream_t stream) {
  const int64_t work = threads(p, kWidth);
  if (work == 0) return cudaSuccess;
  const auto blocks = static_cast<int>((work + kThreads - 1) / kThreads);
  return cuda::launch(rotary_kernel<T, kWidth>, blocks, kThreads, 0, stream, p, work);
}

template <typename T>
cudaError_t launch_type(const RotaryParams& p, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  return aligned(p, kWidth) ? launch_width<T, kWidth>(p, stream) : launch_width<T, 1>(p, stream);
}

}  // namespace
}  // namespace rotary_rows

cudaError_t launch_rotary(const RotaryParams& params, cudaStream_t stream) {
  return dispatch(params.type, [&]<class T>() { return rotary_rows::launch_type<T>(params, stream); });
}

}  // namespace gsa
