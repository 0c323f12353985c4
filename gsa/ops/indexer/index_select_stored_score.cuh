// Scores of tiles of queries against their keys, stored in the workspace: the first of two kernels where rows
// are short or few (docs/kernels/index_select.md, "Stored scores").
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/tma.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_score.h"
#include "gsa/ops/indexer/index_select_stored_plan.h"

namespace gsa::fused_select {

// A warp's scores of a block of keys, so that they go out in whole rows.
struct alignas(16) ScoreStage {
  static constexpr int kRows = kTileQueries / 4;
  static constexpr int kPitch = kBlockKeys + 8;  // neighbouring rows lie in different banks

  float rows[kRows][kPitch];
};

template <class S>
struct ScoreLayout {
  KeyRing<S> rings[S::kConsumers];
  ScoreStage stages[4 * S::kConsumers];
};

// Stages this thread's scores of one product's worth of keys.
template <class S, bool kCareful>
__device__ __forceinline__ void stage_scores(const Query<S>& q,
                                             const float (&logits)[S::kProducts][S::kColumns / 2],
                                             float* to) {
#pragma unroll
  for (int i = 0; i < S::kColumns / 4; i += 2)
    *reinterpret_cast<float2*>(to + 4 * i) = {score<S, kCareful>(q, logits, i, q.offset),
                                              score<S, kCareful>(q, logits, i + 1, q.offset)};
}

// Scores `blocks` blocks of a tile from `first` on, as they arrive in the warpgroup's ring.
template <class S>
__device__ __forceinline__ void score_blocks(const IndexSelectParams& p, const StoredScores& stored,
                                             const ScoreBlock& first, int blocks, bool wild_keys,
                                             KeyRing<S>& ring, ScoreStage& stage,
                                             cuda::RingPosition<KeyRing<S>::kStages>& at) {
  constexpr int kStep = 32 / (kBlockKeys / 4);  // rows that a warp stores together
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) & 31;
  Query<S> q;
  load_query<S>(p, first.sequence, first.tile * kTileQueries + ScoreStage::kRows * warp + lane / kLanesPerRow,
                q);
  const bool careful = wild_keys || __any_sync(kWarp, q.wild);
  float* staged = stage.rows[lane / kLanesPerRow] + 2 * (lane % kLanesPerRow);
  const int row = lane / (kBlockKeys / 4), column = lane % (kBlockKeys / 4) * 4;
  const int64_t pitch = stored.pitch(first.tile);
  float* out = reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + kHeaderBytes) +
               stored.first_entry(first.sequence, first.tile) + (ScoreStage::kRows * warp + row) * pitch +
               first.block * kBlockKeys + column;
  for (int i = 0; i < blocks; ++i, out += kBlockKeys) {
    cuda::mbarrier_wait(&ring.full[at.slot], at.parity);
    const uint32_t keys = cuda::mbarrier_address(ring.keys[at.slot]);
#pragma unroll
    for (int half = 0; half < kBlockKeys / S::kColumns; ++half) {
      float logits[S::kProducts][S::kColumns / 2];
      issue_products<S>(q, keys, half * S::kColumns, logits);
      cuda::wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < S::kProducts; ++j) cuda::wgmma_pin(logits[j]);
      if (half == kBlockKeys / S::kColumns - 1) {
        __syncwarp();
        if (lane == 0) cuda::mbarrier_arrive(&ring.empty[at.slot]);
        at.advance();
      }
      if (careful)
        stage_scores<S, true>(q, logits, staged + half * S::kColumns);
      else
        stage_scores<S, false>(q, logits, staged + half * S::kColumns);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < ScoreStage::kRows; j += kStep)
      *reinterpret_cast<float4*>(out + j * pitch) =
          *reinterpret_cast<const float4*>(&stage.rows[j + row][column]);
    __syncwarp();
  }
}

// A warpgroup's share of the blocks, which number from `first` on.
struct ScoreShare {
  int64_t first;
  int64_t count;
};

template <class S>
__device__ __forceinline__ ScoreShare share_of(const StoredScores& stored, int group) {
  const int64_t shares = int64_t{S::kConsumers} * gridDim.x, all = stored.all_blocks();
  const int64_t number = int64_t{group} * gridDim.x + blockIdx.x, first = all * number / shares;
  return {first, all * (number + 1) / shares - first};
}

// Calls visit(first, blocks) for the blocks of each tile that lie in the share.
template <class Visit>
__device__ __forceinline__ void for_each_run(const StoredScores& stored, ScoreShare share, Visit visit) {
  if (share.count == 0) return;
  ScoreBlock at = find_block(stored, share.first);
  while (share.count > 0) {
    const int64_t blocks = min(share.count, stored.blocks(at.tile) - at.block);
    visit(at, static_cast<int>(blocks));
    share.count -= blocks;
    at.block = 0;
    if (++at.tile < stored.tiles) continue;
    at.tile = 0;
    ++at.sequence;
  }
}

// Every warpgroup goes through its share of the blocks, tile by tile; one warp feeds it.
template <class S>
__global__ void __launch_bounds__(Layout<S>::kThreads, 1)
    score_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ CUtensorMap keys,
                 const __grid_constant__ StoredScores stored) {
  ScoreLayout<S>& shared = cuda::shared_memory<ScoreLayout<S>>();
  if (threadIdx.x == 0) {
    for (KeyRing<S>& ring : shared.rings) ring.init();
    cuda::mbarrier_init_fence();
  }
  __syncthreads();
  // Feeding and scoring in branches of their own, as the registers are for either.
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < 4) {
    cuda::release_registers<Layout<S>::kProducerRegisters>();
    if (warp >= S::kConsumers || (threadIdx.x & 31) != 0) return;
    cuda::RingPosition<KeyRing<S>::kStages> slot;
    for_each_run(stored, share_of<S>(stored, warp), [&](const ScoreBlock& at, int blocks) {
      for (int i = 0; i < blocks; ++i)
        load_block<S>(shared.rings[warp], slot, &keys, false, static_cast<int>(at.block) + i,
                      static_cast<int>(at.sequence));
    });
  } else {
    cuda::acquire_registers<Layout<S>::kConsumerRegisters>();
    const bool wild_keys = static_cast<const Header*>(p.workspace)->wild_keys != 0;
    cuda::RingPosition<KeyRing<S>::kStages> slot;
    for_each_run(stored, share_of<S>(stored, warp / 4 - 1), [&](const ScoreBlock& at, int blocks) {
      score_blocks<S>(p, stored, at, blocks, wild_keys, shared.rings[warp / 4 - 1], shared.stages[warp - 4],
                      slot);
    });
  }
}

}  // namespace gsa::fused_select
