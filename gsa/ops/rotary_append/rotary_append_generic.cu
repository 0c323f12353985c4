// rotary_append for any GPU from sm_80 on: five elementwise jobs in one launch, each with blocks of its own,
// so that a decoding step pays for one kernel and a prefill writes no intermediate array. Arithmetic is fp32,
// rounded where the separate ops round.
#include "gsa/cuda/launch.h"
#include "gsa/ops/rotary/rotary_rows.cuh"
#include "gsa/ops/rotary_append/rotary_append_kernel.h"
#include "gsa/ops/sigmoid_gate/sigmoid_gate_one.cuh"

#ifndef GSA_EMULATE_CUDA
#include <cuda_fp8.h>
#endif

namespace gsa {
namespace append_jobs {
namespace {

using cuda::Pack;
using enum RotaryAppendParams::Job;
using rotary_rows::kThreads;
using rotary_rows::StorePack;

// The nearest e4m3 numbers, saturating.
template <typename T, int kWidth>
struct StoreFloat8 {
  void* out;
  __device__ __forceinline__ void operator()(int64_t at, const Pack<T, kWidth>& pack) const {
    Pack<uint8_t, kWidth> bytes;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      bytes.at[i] = __nv_cvt_float_to_fp8(cuda::to_float(pack.at[i]), __NV_SATFINITE, __NV_E4M3);
    *reinterpret_cast<Pack<uint8_t, kWidth>*>(static_cast<uint8_t*>(out) + at) = bytes;
  }
};

// Pack number `thread` of the values.
template <typename T, int kWidth>
__device__ __forceinline__ void gate_pack(const RotaryAppendParams& p, int64_t thread) {
  using P = Pack<T, kWidth>;
  const RotaryParams& value = p.jobs[kValue];
  const rotary_rows::RowPart row(value, value.dim / kWidth, thread);
  const int element = row.part * kWidth;
  P x = *reinterpret_cast<const P*>(static_cast<const T*>(value.x) + row.row_at(value.x_strides) + element);
  if (p.value_gate != nullptr) {
    const P gate = *reinterpret_cast<const P*>(static_cast<const T*>(p.value_gate) +
                                               row.row_at(p.value_gate_strides) + element);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      gate::gate_one(x.at[e], gate.at[e], &x.at[e]);
      cuda::store(&x.at[e], cuda::to_float(x.at[e]) * p.gate_scale);
    }
  }
  StorePack<T, kWidth>{value.out}(row.row_at(value.out_strides) + element, x);
}

// The threads of each job, and the block at which its blocks end.
struct Work {
  int64_t threads[kJobs], end[kJobs];
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rotary_append_kernel(const __grid_constant__ RotaryAppendParams p, const __grid_constant__ Work work) {
  int job = 0;
  int64_t block = blockIdx.x;
  while (blockIdx.x >= work.end[job]) block = blockIdx.x - work.end[job++];
  const int64_t thread = block * kThreads + threadIdx.x;
  if (thread >= work.threads[job]) return;
  if (job == kValue) {
    gate_pack<T, kWidth>(p, thread);
  } else if (job == kIndexKey && p.float8_index_key) {
    rotary_rows::rotate_piece<T, kWidth>(p.jobs[job], thread, StoreFloat8<T, kWidth>{p.jobs[job].out});
  } else {
    rotary_rows::rotate_piece<T, kWidth>(p.jobs[job], thread, StorePack<T, kWidth>{p.jobs[job].out});
  }
}

template <typename T, int kWidth>
cudaError_t launch_width(const RotaryAppendParams& p, cudaStream_t stream) {
  Work work;
  int64_t blocks = 0;
  for (int job = 0; job < kJobs; ++job) {
    const RotaryParams& rows = p.jobs[job];
    const int64_t parts = job == kValue ? rows.dim / kWidth : rotary_rows::pieces(rows, kWidth);
    work.threads[job] = rows.batch * rows.tokens * rows.heads * parts;
    blocks += (work.threads[job] + kThreads - 1) / kThreads;
    work.end[job] = blocks;
  }
  if (blocks == 0) return cudaSuccess;
  return cuda::launch(rotary_append_kernel<T, kWidth>, static_cast<int>(blocks), kThreads, 0, stream, p,
                      work);
}

template <typename T>
cudaError_t launch_type(const RotaryAppendParams& p, cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  bool whole = reinterpret_cast<uintptr_t>(p.value_gate) % 16 == 0 &&
               rotary_rows::aligned(p.value_gate_strides, kWidth);
  for (int job = 0; job < kJobs; ++job)
    whole = whole &&
            rotary_rows::aligned(p.jobs[job], kWidth, job == kIndexKey && p.float8_index_key ? kWidth : 16);
  return whole ? launch_width<T, kWidth>(p, stream) : launch_width<T, 1>(p, stream);
}

}  // namespace
}  // namespace append_jobs

cudaError_t launch_rotary_append(const RotaryAppendParams& params, cudaStream_t stream) {
  return dispatch(params.jobs[RotaryAppendParams::kKey].type,
                  [&]<class T>() { return append_jobs::launch_type<T>(params, stream); });
}

}  // namespace gsa
