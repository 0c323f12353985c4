// Fused score-and-select for Hopper: [T, S] scores live in registers only (docs/kernels/index_select.md).
//
// A warpgroup owns a tile of 32 queries and streams all keys they may see past it by TMA. The warpgroups of a
// block go their own ways: while one finishes its rows, the others have the tensor cores. Scores that beat a
// row's gate are appended to the row's list in the workspace. The gate starts from a strided sample of the
// keys (a rank that lies below the row's k-th best but for bad luck; then the tile runs again without it) and
// is tightened to the exact k-th best so far whenever a list fills up. The exact trim and the ordered
// emission follow when the row's variance, and with it its budget, is known.
#pragma once

#include <algorithm>

#include "gsa/cuda/launch.h"
#include "gsa/cuda/tma.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_consumer.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_sm90.h"
#include "gsa/ops/indexer/index_select_stored_score.cuh"

namespace gsa::fused_select {

template <class S>
__global__ void __launch_bounds__(Layout<S>::kThreads, 1)
    select_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ CUtensorMap keys,
                  const __grid_constant__ CUtensorMap strided, int row_limit, int works) {
  Layout<S>& shared = cuda::shared_memory<Layout<S>>();
  Header* header = static_cast<Header*>(p.workspace);
  if (p.again != nullptr && header->rows_again == 0) return;
  if (threadIdx.x == 0) {
    for (Group<S>& group : shared.groups) {
      group.init();
      group.again[0] = group.again[1] = 0;
      group.flush_request = -1;
    }
    cuda::mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    cuda::release_registers<Layout<S>::kProducerRegisters>();
    const int group = static_cast<int>(threadIdx.x) / 32;
    if (group < S::kConsumers)
      produce<S>(p, &keys, &strided, shared.groups[group], group, header, row_limit, works);
  } else {
    cuda::acquire_registers<Layout<S>::kConsumerRegisters>();
    const int number = static_cast<int>(threadIdx.x) / 128 - 1;
    Group<S>& group = shared.groups[number];
    Consumer<S> consumer{p,
                         shared,
                         group,
                         RowStore{static_cast<uint8_t*>(p.workspace) + kHeaderBytes, row_limit},
                         header->wild_keys(),
                         {},
                         works,
                         0};
    for (int round = 0;; ++round) {
      tile_barrier(number);
      const int tile = group.tile;
      if (tile >= works) return;
      const Work work = find_work(p, row_limit, tile);
      if (is_wanted(p, work))
        consumer.run_tile(work, &group.again[round & 1]);
      else
        tile_barrier(number);
    }
  }
}

// ---- host

struct Maps {
  CUtensorMap keys;
  CUtensorMap strided;
};

template <class S>
cudaError_t make_maps(const IndexSelectParams& p, Maps& maps) {
  const uint64_t dim = S::kDim, keys = p.keys, batch = p.batch;
  const CUtensorMapSwizzle swizzle =
      S::kPanelDim == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const uint64_t sizes[3] = {dim, keys, batch};
  const uint64_t strides[2] = {dim * 2, keys * dim * 2};
  const uint32_t box[3] = {S::kPanelDim, kBlockKeys, 1};
  cudaError_t error = cuda::make_tensor_map_bf16(&maps.keys, p.index_key, 3, sizes, strides, box, swizzle);
  if (error != cudaSuccess) return error;
  const uint64_t sample_sizes[4] = {dim, kSampleStride, std::max<uint64_t>(1, keys / kSampleStride), batch};
  const uint64_t sample_strides[3] = {dim * 2, dim * 2 * kSampleStride, keys * dim * 2};
  const uint32_t sample_box[4] = {S::kPanelDim, 1, kBlockKeys, 1};
  return cuda::make_tensor_map_bf16(&maps.strided, p.index_key, 4, sample_sizes, sample_strides, sample_box,
                                    swizzle);
}

template <class Kernel>
cudaError_t allow_shared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <class S, bool kCodes>
cudaError_t launch_scores(const IndexSelectParams& p, const CUtensorMap& keys, cudaStream_t stream) {
  constexpr int kShared = sizeof(ScoreLayout<S, kCodes>);
  const cudaError_t error = allow_shared(score_kernel<S, kCodes>, kShared);
  if (error != cudaSuccess) return error;
  const StoredScores stored = stored_scores(p);
  const int blocks = static_cast<int>(std::min<int64_t>(stored.all_blocks(), multiprocessors()));
  return cuda::launch_early(score_kernel<S, kCodes>, blocks, Layout<S>::kThreads, kShared, stream, p, keys,
                            stored);
}

template <class S>
cudaError_t launch(const IndexSelectParams& p, cudaStream_t stream) {
  constexpr int kShared = sizeof(Layout<S>);
  static_assert(std::max(sizeof(Layout<S>), sizeof(ScoreLayout<S, false>)) <= 227 << 10,
                "the shared memory of a multiprocessor");
  Maps maps;
  const cudaError_t error = make_maps<S>(p, maps);
  if (error != cudaSuccess) return error;
  if (p.leaves == SelectLeaves::kScores) {
    if constexpr (S::kSoftmax)
      return cudaErrorInvalidValue;
    else if constexpr (S::kActivation == IndexActivation::kRelu)
      return launch_scores<S, false>(p, maps.keys, stream);
    else
      return stores_codes(p) ? launch_scores<S, true>(p, maps.keys, stream)
                             : launch_scores<S, false>(p, maps.keys, stream);
  }
  const cudaError_t allowed = allow_shared(select_kernel<S>, kShared);
  if (allowed != cudaSuccess) return allowed;
  return cuda::launch(select_kernel<S>, block_count(p, multiprocessors()), Layout<S>::kThreads, kShared,
                      stream, p, maps.keys, maps.strided, static_cast<int>(list_capacity(p)),
                      static_cast<int>(work_count(p)));
}

template <IndexActivation kActivation, int kHeads>
cudaError_t launch_dim(const IndexSelectParams& p, cudaStream_t stream) {
  switch (p.dim) {
#ifndef GSA_ONLY64
    case 32:
      return launch<Shape<kHeads, 32, kActivation>>(p, stream);
    case 128:
      return launch<Shape<kHeads, 128, kActivation>>(p, stream);
#endif
    case 64:
      return launch<Shape<kHeads, 64, kActivation>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <IndexActivation kActivation>
cudaError_t launch_heads(const IndexSelectParams& p, cudaStream_t stream) {
  switch (p.heads) {
#ifndef GSA_ONLY64
    case 1:
      return launch_dim<kActivation, 1>(p, stream);
    case 2:
      return launch_dim<kActivation, 2>(p, stream);
    case 8:
      return launch_dim<kActivation, 8>(p, stream);
#endif
    case 4:
      return launch_dim<kActivation, 4>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gsa::fused_select
