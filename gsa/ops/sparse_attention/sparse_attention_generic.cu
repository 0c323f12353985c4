// Sparse attention forward for any GPU from sm_80 on: a warp attends one query with one head and gathers that
// query's own keys. Eight lanes share a key, so four keys are in work at a time, each with its own online
// softmax; the four are merged at the end.
//
// Heads of a group run side by side and find the rows in L1, but neighbouring queries do not share what they
// gather: use it for types and shapes that have no better kernel.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gsa/cuda/reduction.h"
#include "gsa/ops/sparse_attention/sparse_attention_heuristics.h"
#include "gsa/ops/sparse_attention/sparse_attention_params.h"

namespace gsa::sparse_attention {
namespace {

constexpr int kWarps = 8;
constexpr int kSlots = 4;            // keys in work
constexpr int kRedoSpan = 4;         // queries that a thread block takes at a time in a second pass
constexpr int kRedoBlocks = 1056;    // of a second pass, which mostly finds nothing to do
constexpr int kLanes = 32 / kSlots;  // lanes of a key

__device__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ float4 load4(const __nv_bfloat16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  return {__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
          __uint_as_float(raw.y & 0xffff0000u)};
}
__device__ float4 load4(const __half* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  const float2 a = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
  const float2 b = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
  return {a.x, a.y, b.x, b.y};
}
__device__ void store(float* p, float x) {
  *p = x;
}
__device__ void store(__nv_bfloat16* p, float x) {
  *p = __float2bfloat16_rn(x);
}
__device__ void store(__half* p, float x) {
  *p = __float2half_rn(x);
}

// What a lane has summed of its slot's keys: pieces of four channels, 4 * (lane % 8) + 32 * piece.
template <int E>
struct Partial {
  static constexpr int kPieces = E / (4 * kLanes);
  float o[4 * kPieces] = {};
  float maximum = -INFINITY, sum = 0;  // of scores in powers of two

  __device__ void rescale(float raised) {
    const float factor = maximum == raised ? 1.0f : cuda::fast_exp2(maximum - raised);
    maximum = raised;
    sum *= factor;
#pragma unroll
    for (float& x : o) x *= factor;
  }

  // Adds the other slots' partial sums, the same in all four.
  __device__ void merge_slots() {
#pragma unroll
    for (int offset = kLanes; offset < 32; offset *= 2) {
      const float raised = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, offset));
      if (raised != -INFINITY) rescale(raised);
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
#pragma unroll
      for (float& x : o) x += __shfl_xor_sync(0xffffffffu, x, offset);
    }
  }
};

template <typename T, int E>
__device__ void attend_query(const SparseAttentionParams& p, int batch, int t, int head) {
  constexpr int kPieces = Partial<E>::kPieces;
  const int lane = threadIdx.x % 32, slot = lane / kLanes, channel = 4 * (lane % kLanes);
  const int kv_head = head / (p.heads / p.kv_heads);
  const T* query = static_cast<const T*>(p.query) + batch * p.query_stride[0] + t * p.query_stride[1] +
                   head * p.query_stride[2];
  const T* key = static_cast<const T*>(p.key) + batch * p.key_stride[0] + kv_head * p.key_stride[2] + channel;
  const T* value =
      static_cast<const T*>(p.value) + batch * p.value_stride[0] + kv_head * p.value_stride[2] + channel;
  const int64_t row = int64_t(batch) * p.rows + t / p.query_tile;
  const int32_t* entries = p.indices + row * p.capacity;
  const int count = min(p.counts[row], p.capacity), position = t + p.keys - p.queries;
  const float scale_log2 = p.scale * 1.4426950408889634f;

  float4 q[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) q[i] = load4(query + channel + 32 * i);
  Partial<E> partial;
  for (int base = 0; base < count; base += kSlots) {
    const int token = base + slot < count ? entries[base + slot] : -1;
    const bool attended = token >= 0 && token <= position;
    float score = 0;
    if (attended) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const float4 k = load4(key + token * p.key_stride[1] + 32 * i);
        score += q[i].x * k.x + q[i].y * k.y + q[i].z * k.z + q[i].w * k.w;
      }
    }
    score = cuda::warp_sum<kLanes>(score) * scale_log2;
    if (attended) {
      if (score > partial.maximum) partial.rescale(score);
      const float weight = cuda::fast_exp2(score - partial.maximum);
      partial.sum += weight;
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const float4 v = load4(value + token * p.value_stride[1] + 32 * i);
        partial.o[4 * i + 0] += weight * v.x;
        partial.o[4 * i + 1] += weight * v.y;
        partial.o[4 * i + 2] += weight * v.z;
        partial.o[4 * i + 3] += weight * v.w;
      }
    }
  }
  partial.merge_slots();
  if (slot > 0) return;
  const int64_t at = (int64_t(batch) * p.queries + t) * p.heads + head;
  const float inverse = partial.sum != 0 ? 1.0f / partial.sum : 0.0f;
  T* out = static_cast<T*>(p.out) + at * E + channel;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) store(out + 32 * i + j, partial.o[4 * i + j] * inverse);
  }
  if (lane == 0)
    p.lse[at] = partial.sum != 0 ? (partial.maximum + log2f(partial.sum)) * 0.6931471805599453f : -INFINITY;
}

// A thread block attends `span` neighbouring queries of a tile of `tile_queries` at a time. Warps side by
// side take the heads of one group.
template <typename T, int E>
__global__ void __launch_bounds__(32 * kWarps)
    attend_queries(SparseAttentionParams p, const int32_t* redo, int tile_queries, int span) {
  const int spans = tile_queries / span, per_batch = tiles_of(p.queries, tile_queries);
  const int all = redo != nullptr ? redo[0] * spans : static_cast<int>(gridDim.x);
  for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
    const int part = static_cast<int>(i);
    const int tile = redo != nullptr ? redo[1 + part / spans] : part;
    const int batch = tile / per_batch, first = tile % per_batch * tile_queries + part % spans * span;
    for (int pair = threadIdx.x / 32; pair < span * p.heads; pair += kWarps) {
      const int t = first + pair / p.heads;
      if (t < p.queries) attend_query<T, E>(p, batch, t, pair % p.heads);
    }
  }
}

template <typename T>
cudaError_t launch(const SparseAttentionParams& p, const int32_t* redo, int redo_queries,
                   cudaStream_t stream) {
  const int tile_queries = redo != nullptr ? redo_queries : 1;
  const int span = redo != nullptr ? kRedoSpan : 1;
  if (tile_queries % span != 0) return cudaErrorInvalidValue;
  const int64_t most = int64_t(p.batch) * tiles_of(p.queries, tile_queries) * (tile_queries / span);
  if (most == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(redo != nullptr ? min(most, int64_t{kRedoBlocks}) : most);
  switch (p.dim) {
    case 32:
      attend_queries<T, 32><<<blocks, 32 * kWarps, 0, stream>>>(p, redo, tile_queries, span);
      break;
    case 64:
      attend_queries<T, 64><<<blocks, 32 * kWarps, 0, stream>>>(p, redo, tile_queries, span);
      break;
    case 128:
      attend_queries<T, 128><<<blocks, 32 * kWarps, 0, stream>>>(p, redo, tile_queries, span);
      break;
    case 256:
      attend_queries<T, 256><<<blocks, 32 * kWarps, 0, stream>>>(p, redo, tile_queries, span);
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaGetLastError();
}

}  // namespace
}  // namespace gsa::sparse_attention

namespace gsa {

cudaError_t launch_sparse_attention_forward_generic(const SparseAttentionParams& params, const int32_t* redo,
                                                    int redo_queries, cudaStream_t stream) {
  return dispatch(params.type,
                  [&]<class T>() { return sparse_attention::launch<T>(params, redo, redo_queries, stream); });
}

}  // namespace gsa
