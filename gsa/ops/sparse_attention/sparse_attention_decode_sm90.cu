// sparse_attention for few new tokens over a long cache (decode).
//
// A cluster of CTAs shares the selected keys of one query and one key/value group. Each warp gathers tiles of
// 16 keys from global memory straight into the registers of mma.m16n8k16: S^T = K Q^T with the keys as rows
// and the group's heads as columns, then O^T += V^T P^T. Warps merge through shared memory, CTAs through the
// cluster's distributed shared memory.
#include "gsa/cuda/grid.h"
#include "gsa/cuda/launch.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/ops/sparse_attention/sparse_attention_decode.h"
#include "gsa/ops/sparse_attention/sparse_attention_decode_tile.cuh"

namespace gsa {
namespace decode {
namespace {

// Shared memory of a CTA: what its warps have found, then what all CTAs of the cluster have found for the
// outputs that this one finishes.
struct Partial {
  uint64_t* received;  // barrier: the cluster's CTAs have sent their shares
  float* out;          // [warp][head][dim]
  float* peak;         // [warp][head]
  float* sum;          // [warp][head]
  float* part_out;     // [CTA][output]
  float2* total;       // [CTA][head] peak and sum

  __device__ Partial(float* base, int warps, int heads, int dim)
      : received(reinterpret_cast<uint64_t*>(base)),
        out(base + 4),
        peak(out + warps * heads * dim),
        sum(peak + warps * heads),
        part_out(sum + warps * heads),
        total(reinterpret_cast<float2*>(part_out + heads * dim)) {}
};

constexpr size_t partial_bytes(int warps, int heads, int dim, int splits) {
  return 16 + sizeof(float) * heads * (static_cast<size_t>(warps) * (dim + 2) + dim + 2 * splits);
}

// The cluster's barrier: arrive, and wait for the others to have arrived. What was written before is visible
// then.
__device__ __forceinline__ void arrive_at_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Sends two numbers to the shared memory of CTA `rank` of the cluster, whose barrier counts the bytes that
// arrive. `to` and `barrier` are this CTA's own addresses of the same places.
__device__ __forceinline__ void send(int rank, const float* to, uint64_t* barrier, float2 x) {
  uint32_t place, counter;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(place) : "r"(cuda::mbarrier_address(to)), "r"(rank));
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(counter)
      : "r"(cuda::mbarrier_address(barrier)), "r"(rank));
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(place),
      "f"(x.x), "f"(x.y), "r"(counter)
      : "memory");
}

template <int kDim, int kBlocks, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kBlocks == 1 && kWarps == 4 ? 3 : 1)
    sparse_attention_decode_kernel(const __grid_constant__ SparseAttentionDecodeParams p) {
  extern __shared__ float dynamic[];
  constexpr int kThreads = kWarps * 32;
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
  const int split = blockIdx.x, splits = gridDim.x, kv = blockIdx.y;
  const int tokens = static_cast<int>(p.queries), row = blockIdx.z / tokens, query = blockIdx.z % tokens;
  const int heads = p.heads / p.groups;  // of this group
  const int64_t first_head = (static_cast<int64_t>(row) * tokens + query) * p.heads + kv * heads;

  const int rows = (tokens + p.query_tile - 1) / p.query_tile;
  const int64_t selection = static_cast<int64_t>(row) * rows + query / p.query_tile;
  const int32_t* indices = p.indices + selection * p.capacity;
  const int token_stride = p.groups * kDim, step = splits * kWarps;
  const __nv_bfloat16* key =
      static_cast<const __nv_bfloat16*>(p.key) + row * p.key_batch_stride + static_cast<int64_t>(kv) * kDim;
  const __nv_bfloat16* value = static_cast<const __nv_bfloat16*>(p.value) + row * p.value_batch_stride +
                               static_cast<int64_t>(kv) * kDim;
  const __nv_bfloat16* q = static_cast<const __nv_bfloat16*>(p.query) + first_head * kDim + quad * 8;
  auto read_index = [&](int tile) {
    const int at = tile * kAttentionTile + lane % 16;
    return at < p.capacity ? indices[at] : -1;
  };
  int at = split * kWarps + warp;  // this warp's tile
  const Partial partial(dynamic, kWarps, heads, kDim);
  const int outputs = heads * kDim / splits;  // that each CTA finishes
  if (threadIdx.x == 0) {
    const int first = split * outputs, totals = (first + outputs - 1) / kDim - first / kDim + 1;
    cuda::mbarrier_init(partial.received, 1);
    cuda::mbarrier_init_fence();
    cuda::mbarrier_arrive_expect(partial.received,
                                 splits * (outputs * sizeof(float) + totals * sizeof(float2)));
  }
  arrive_at_cluster();        // this CTA has started, and has shared memory to write to
  cuda::launch_dependents();  // the next kernel waits for the end of this one, but may start to wait
  cuda::wait_previous_kernel();

  // Everything that does not depend on anything else first: one latency for all.
  int next = read_index(at);
  const int count = min(p.counts[selection], p.capacity);
  const int length = p.lengths ? min(p.lengths[row], static_cast<int>(p.keys)) : static_cast<int>(p.keys);
  uint4 pieces[kBlocks][kDim / 32];
#pragma unroll
  for (int n = 0; n < kBlocks; ++n)
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i)
      pieces[n][i] = n * 8 + group < heads
                         ? *reinterpret_cast<const uint4*>(q + (n * 8 + group) * kDim + i * 32)
                         : make_uint4(0, 0, 0, 0);
  const int position = length - tokens + query;

  Softmax<kDim> softmax[kBlocks];
  const int tiles = (count + kAttentionTile - 1) / kAttentionTile;
  for (; at < tiles; at += step) {
    const int index = at * kAttentionTile + lane % 16 < count && next <= position ? next : -1;
    Gathered<kDim> tile;
    gather_keys<kDim>(tile, index, key, token_stride);
    gather_values<kDim>(tile, index, value, token_stride);
    next = read_index(at + step);
    float logits[kBlocks][4];
    unsigned weights[kBlocks][2];
    multiply_keys<kDim, kBlocks>(logits, tile, pieces);
    const bool seen0 = __shfl_sync(0xffffffffu, index, group) >= 0;
    const bool seen8 = __shfl_sync(0xffffffffu, index, group + 8) >= 0;
#pragma unroll
    for (int n = 0; n < kBlocks; ++n)
      weigh(softmax[n], logits[n], seen0, seen8, p.scale * 1.44269504f, weights[n]);
    add_values(softmax, tile, weights);
  }

  // Each warp leaves its softmax in shared memory.
#pragma unroll
  for (int n = 0; n < kBlocks; ++n) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = n * 8 + quad * 2 + h, place = warp * heads + head;
      const float sum = total_weight(softmax[n], h);
      if (head >= heads) continue;
      if (group == 0) {
        partial.peak[place] = softmax[n].peak[h];
        partial.sum[place] = sum;
      }
#pragma unroll
      for (int m = 0; m < kDim / 16; ++m) {
        float* out = partial.out + place * kDim + dimension(m, group, 0);
        *reinterpret_cast<float2*>(out) = make_float2(softmax[n].out[m][h], softmax[n].out[m][h + 2]);
      }
    }
  }
  __syncthreads();
  wait_for_cluster();
  // Each CTA of the cluster finishes a share of the outputs: the others send it theirs. It waits for their
  // bytes, not for them, and nobody writes to a CTA that has ended.
  const auto put = [&](int target, float* to, float2 x) {
    if (splits > 1)
      send(target, to, partial.received, x);
    else
      *reinterpret_cast<float2*>(to) = x;
  };
  for (int i = threadIdx.x * 2; i < heads * kDim; i += kThreads * 2) {
    const int head = i / kDim;
    float peak = -INFINITY, sum = 0;
    float2 out = make_float2(0, 0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, partial.peak[w * heads + head]);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = cuda::softmax_weight(partial.peak[w * heads + head], peak);
      const float2 found = *reinterpret_cast<const float2*>(partial.out + w * heads * kDim + i);
      sum += partial.sum[w * heads + head] * factor;
      out.x += found.x * factor;
      out.y += found.y * factor;
    }
    const int target = i / outputs, place = split * outputs + i % outputs;
    put(target, partial.part_out + place, out);
    if (i % outputs == 0 || i % kDim == 0)  // the first of the target's, or of the head's
      put(target, reinterpret_cast<float*>(partial.total + split * heads + head), make_float2(peak, sum));
  }
  if (splits > 1)
    cuda::mbarrier_wait_cluster(partial.received, 0);
  else
    __syncthreads();
  constexpr int kLanes = 8;  // share an output's parts
  const int part = threadIdx.x % kLanes;
  for (int i = threadIdx.x / kLanes; i < outputs; i += kThreads / kLanes) {
    const int output = split * outputs + i, head = output / kDim;
    float peaks[2], sums[2], outs[2], peak = -INFINITY, sum = 0, out = 0;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int s = part + r * kLanes;
      const bool there = s < splits;
      const float2 total = there ? partial.total[s * heads + head] : make_float2(-INFINITY, 0.0f);
      peaks[r] = total.x;
      sums[r] = total.y;
      outs[r] = there ? partial.part_out[s * outputs + i] : 0.0f;
      peak = fmaxf(peak, peaks[r]);
    }
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2)
      peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, offset));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float factor = cuda::softmax_weight(peaks[r], peak);
      sum += sums[r] * factor;
      out += outs[r] * factor;
    }
#pragma unroll
    for (int offset = 1; offset < kLanes; offset *= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, offset);
      out += __shfl_xor_sync(0xffffffffu, out, offset);
    }
    if (part != 0) continue;
    const bool any = sum > 0 || sum != sum;  // NaN must not look like no keys
    static_cast<__nv_bfloat16*>(p.out)[first_head * kDim + output] = __float2bfloat16(any ? out / sum : 0.0f);
    if (output % kDim == 0) p.lse[first_head + head] = any ? (peak + log2f(sum)) * 0.693147181f : -INFINITY;
  }
}

template <int kDim, int kBlocks, int kWarps>
cudaError_t launch(const SparseAttentionDecodeParams& p, int multiprocessors, cudaStream_t stream) {
  const auto kernel = sparse_attention_decode_kernel<kDim, kBlocks, kWarps>;
  int splits = attention_splits(p.batch, p.queries, p.groups, p.capacity, multiprocessors);
  if (splits > 8 &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess)
    splits = 8;
  const size_t bytes = partial_bytes(kWarps, p.heads / p.groups, kDim, splits);
  if (cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)))
    return error;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = splits;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(splits, p.groups, static_cast<unsigned>(p.batch * p.queries));
  config.blockDim = dim3(kWarps * 32);
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  return cudaLaunchKernelEx(&config, kernel, p);
}

template <int kDim, int kBlocks>
cudaError_t launch_warps(const SparseAttentionDecodeParams& p, int multiprocessors, cudaStream_t stream) {
  return attention_warps(p.batch, p.queries, p.groups, multiprocessors) == 8
             ? launch<kDim, kBlocks, 8>(p, multiprocessors, stream)
             : launch<kDim, kBlocks, 4>(p, multiprocessors, stream);
}

}  // namespace
}  // namespace decode

bool sparse_attention_decode_supported(const SparseAttentionDecodeParams& p) {
  return (p.dim == 64 || p.dim == 128) && p.groups > 0 && p.heads % p.groups == 0 &&
         p.heads / p.groups <= 16 && p.queries >= 1 && p.queries <= decode::kMaxAttentionTokens &&
         p.batch >= 1 && p.batch * p.queries <= 65535 && p.keys < (int64_t{1} << 30) &&
         p.key_batch_stride % 8 == 0 && p.value_batch_stride % 8 == 0;
}

cudaError_t launch_sparse_attention_decode(const SparseAttentionDecodeParams& params, cudaStream_t stream) {
  if (!sparse_attention_decode_supported(params)) return cudaErrorNotSupported;
  int multiprocessors = 0;
  if (cudaError_t error = cuda::count_multiprocessors(&multiprocessors)) return error;
  const bool wide = params.heads / params.groups > 8;
  if (params.dim == 64) {
    return wide ? decode::launch_warps<64, 2>(params, multiprocessors, stream)
                : decode::launch_warps<64, 1>(params, multiprocessors, stream);
  }
  return wide ? decode::launch_warps<128, 2>(params, multiprocessors, stream)
              : decode::launch_warps<128, 1>(params, multiprocessors, stream);
}

}  // namespace gsa
