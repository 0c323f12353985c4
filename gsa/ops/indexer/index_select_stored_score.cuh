// Scores of tiles of queries against their keys, stored in the workspace: the first of two kernels where rows
// are short or few (docs/kernels/index_select.md, "Stored scores").
#pragma once

#include "gsa/cuda/grid.h"
#include "gsa/cuda/launch.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/tma.h"
#include "gsa/cuda/wgmma.h"
#include "gsa/ops/indexer/index_select_code.h"
#include "gsa/ops/indexer/index_select_layout.h"
#include "gsa/ops/indexer/index_select_score.h"
#include "gsa/ops/indexer/index_select_stored_plan.h"

namespace gsa::fused_select {

// A warp's scores of a block of keys, or with kCodes their codes, so that they go out in whole rows.
template <bool kCodes>
struct alignas(16) ScoreStage {
  static constexpr int kRows = kTileQueries / 4;
  static constexpr int kWords = kBlockKeys / (kCodes ? 2 : 1);
  static constexpr int kPitch = kWords + (kCodes ? 4 : 8);  // neighbouring rows lie in different banks

  uint32_t rows[kRows][kPitch];
};

template <class S, bool kCodes>
struct ScoreLayout {
  KeyRing<S> rings[S::kConsumers];
  ScoreStage<kCodes> stages[4 * S::kConsumers];
};

// Weights of scores whose codes are stored.
template <class S>
__device__ __forceinline__ void scale_weights(Query<S>& q) {
  constexpr bool kTwoSided = S::kActivation == IndexActivation::kSigmoid;  // from -1 to 1
  float sum = 0;
#pragma unroll
  for (int j = 0; j < S::kScored; ++j) sum += fabsf(q.weight[j]);
  const float scale = code_scale(kTwoSided ? 2.0f * sum : sum);
  q.offset = kCodeOrigin;
#pragma unroll
  for (int j = 0; j < S::kScored; ++j) {
    q.weight[j] = scale == 0.0f ? 0.0f : q.weight[j] * scale;
    q.offset += kTwoSided ? fabsf(q.weight[j]) : fmaxf(-q.weight[j], 0.0f);
  }
}

template <class S, bool kCareful>
__device__ __forceinline__ float code_sum(const Query<S>& q,
                                          const float (&logits)[S::kProducts][S::kColumns / 2], int i) {
  const float sum = score<S, kCareful>(q, logits, i, q.offset);
  return kCareful && isnan(sum) ? kNaNSum : sum;
}

// Stages this thread's scores of one product's worth of keys.
template <class S, bool kCodes, bool kCareful>
__device__ __forceinline__ void stage_scores(const Query<S>& q,
                                             const float (&logits)[S::kProducts][S::kColumns / 2],
                                             uint32_t* to) {
#pragma unroll
  for (int i = 0; i < S::kColumns / 4; i += 2) {
    if constexpr (kCodes)
      to[2 * i] = code_pair(code_sum<S, kCareful>(q, logits, i), code_sum<S, kCareful>(q, logits, i + 1));
    else
      *reinterpret_cast<float2*>(to + 4 * i) = {score<S, kCareful>(q, logits, i, q.offset),
                                                score<S, kCareful>(q, logits, i + 1, q.offset)};
  }
}

// Scores blocks of a tile, as they arrive in the warpgroup's ring.
template <class S, bool kCodes>
__device__ __forceinline__ void score_blocks(const IndexSelectParams& p, const StoredScores& stored,
                                             const BlockRun& run, bool wild_keys, KeyRing<S>& ring,
                                             ScoreStage<kCodes>& stage,
                                             cuda::RingPosition<KeyRing<S>::kStages>& at) {
  using Stage = ScoreStage<kCodes>;
  constexpr int kLanes = Stage::kWords / 4;  // that store a row
  constexpr int kStep = 32 / kLanes;         // rows that a warp stores together
  constexpr int kPack = kBlockKeys / Stage::kWords;
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32, lane = static_cast<int>(threadIdx.x) & 31;
  Query<S> q;
  load_query<S>(p, run.sequence, run.tile * kTileQueries + Stage::kRows * warp + lane / kLanesPerRow, q);
  if constexpr (kCodes) scale_weights<S>(q);
  const bool careful = wild_keys || __any_sync(kWarp, q.wild);
  uint32_t* staged = stage.rows[lane / kLanesPerRow] + 2 / kPack * (lane % kLanesPerRow);
  const int row = lane / kLanes, column = lane % kLanes * 4;
  const int64_t pitch = stored.pitch(run.tile) / kPack;
  uint32_t* out = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(p.workspace) + kHeaderBytes) +
                  (stored.first_entry(run.sequence, run.tile) + run.first * kBlockKeys) / kPack +
                  (Stage::kRows * warp + row) * pitch + column;
  // What is staged goes out while the next block's products run.
  const auto store = [&] {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < Stage::kRows; j += kStep)
      *reinterpret_cast<uint4*>(out + j * pitch) =
          *reinterpret_cast<const uint4*>(&stage.rows[j + row][column]);
    __syncwarp();
    out += Stage::kWords;
  };
  for (int i = 0; i < run.count; ++i) {
    cuda::mbarrier_wait(&ring.full[at.slot], at.parity);
    const uint32_t keys = cuda::mbarrier_address(ring.keys[at.slot]);
#pragma unroll
    for (int half = 0; half < kBlockKeys / S::kColumns; ++half) {
      float logits[S::kProducts][S::kColumns / 2];
      issue_products<S>(q, keys, half * S::kColumns, logits);
      if (half == 0 && i > 0) store();
      cuda::wgmma_wait<0>();
#pragma unroll
      for (int j = 0; j < S::kProducts; ++j) cuda::wgmma_pin(logits[j]);
      if (half == kBlockKeys / S::kColumns - 1) {
        __syncwarp();
        if (lane == 0) cuda::mbarrier_arrive(&ring.empty[at.slot]);
        at.advance();
      }
      if (careful)
        stage_scores<S, kCodes, true>(q, logits, staged + half * S::kColumns / kPack);
      else
        stage_scores<S, kCodes, false>(q, logits, staged + half * S::kColumns / kPack);
    }
  }
  store();
}

// Calls visit(run) for the blocks of warpgroup number `group` of this thread block: equal shares of the work.
template <class S, class Visit>
__device__ __forceinline__ void for_each_run_of(const StoredScores& stored, int group, Visit visit) {
  const int64_t shares = int64_t{S::kConsumers} * gridDim.x, all = stored.all_work();
  const int64_t number = int64_t{group} * gridDim.x + blockIdx.x, first = all * number / shares;
  for_each_run(stored, first, all * (number + 1) / shares - first, visit);
}

// Every warpgroup goes through its share of the blocks, tile by tile; one warp feeds it.
template <class S, bool kCodes>
__global__ void __launch_bounds__(Layout<S>::kThreads, 1)
    score_kernel(const __grid_constant__ IndexSelectParams p, const __grid_constant__ CUtensorMap keys,
                 const __grid_constant__ StoredScores stored) {
  cuda::launch_dependents();
  ScoreLayout<S, kCodes>& shared = cuda::shared_memory<ScoreLayout<S, kCodes>>();
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
    for_each_run_of<S>(stored, warp, [&](const BlockRun& run) {
      for (int i = 0; i < run.count; ++i)
        load_block<S>(shared.rings[warp], slot, &keys, false, static_cast<int>(run.first) + i,
                      static_cast<int>(run.sequence));
    });
  } else {
    cuda::acquire_registers<Layout<S>::kConsumerRegisters>();
    cuda::wait_previous_kernel();  // for the header, and for rows that still read the workspace
    const bool wild_keys = static_cast<const Header*>(p.workspace)->wild_keys();
    cuda::RingPosition<KeyRing<S>::kStages> slot;
    for_each_run_of<S>(stored, warp / 4 - 1, [&](const BlockRun& run) {
      score_blocks<S, kCodes>(p, stored, run, wild_keys, shared.rings[warp / 4 - 1], shared.stages[warp - 4],
                              slot);
    });
  }
}

}  // namespace gsa::fused_select
