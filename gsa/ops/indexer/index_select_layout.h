// A thread block of the fused index_select: its shared memory, its roles and the work it takes.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/tma.h"
#include "gsa/ops/indexer/index_select_finish.h"
#include "gsa/ops/indexer/index_select_plan.h"
#include "gsa/ops/indexer/index_select_score.h"
#include "gsa/ops/indexer/index_select_shared.h"
#include "gsa/ops/indexer/index_select_stage.h"

namespace gsa::fused_select {

// Head of the workspace, zeroed before the launch.
struct Header {
  unsigned next_tile;
  unsigned wild_keys;
};

template <class S>
struct Layout {
  static constexpr int kStages = S::kDim == 128 ? 2 : 5;
  static constexpr int kWarps = 4 * S::kConsumers;
  static constexpr int kThreads = 128 * (1 + S::kConsumers);
  static constexpr int kConsumerRegisters = S::kConsumers == 3 ? 160 : 232;
  static constexpr int kProducerRegisters = S::kConsumers == 3 ? 32 : 40;

  alignas(1024) uint8_t keys[kStages][S::kStageBytes];
  WarpScratch warps[kWarps];
  uint32_t bins[kWarps][8][kBins];
  Notes<S> notes[kWarps][32];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  int tile;
  int again[2];
};

struct Work {
  int64_t batch;
  int64_t first_query;
  int64_t first_position;  // of the first query
  int key_blocks;          // blocks that hold a key any query of the tile may see
  int samples;             // strided blocks before them
};

// Longest tiles first, so that the last ones to finish are short.
template <class S>
__device__ __forceinline__ Work find_work(const IndexSelectParams& p, int lane_limit, int number) {
  const int tiles = static_cast<int>((p.queries + S::kTileQueries - 1) / S::kTileQueries);
  Work work;
  work.batch = number % p.batch;
  work.first_query = static_cast<int64_t>(tiles - 1 - number / static_cast<int>(p.batch)) * S::kTileQueries;
  work.first_position = work.first_query + p.keys - p.queries;
  const int64_t end = min(p.keys, work.first_position + S::kTileQueries);
  work.key_blocks = static_cast<int>((end + kBlockKeys - 1) / kBlockKeys);
  const int64_t before = S::kShared ? work.first_query % p.query_tile : 0;  // of the first query's tile
  work.samples = sample_blocks(work.first_position - before, lane_limit);
  return work;
}

// The first of the tile's rows, where the rows of all tiles lie side by side, sequence by sequence.
template <class S>
__device__ __forceinline__ int64_t first_row_of(const IndexSelectParams& p, const Work& work) {
  const int64_t tiles = (p.queries + S::kTileQueries - 1) / S::kTileQueries;
  return work.batch * tiles * S::kTileQueries + work.first_query;
}

template <class S>
__device__ __forceinline__ void tile_barrier() {
  cuda::named_barrier<1, 128 * S::kConsumers + 32>();
}

// ---- producer: one warp; lane 0 feeds the ring

template <class S>
__device__ void load_block(Layout<S>& shared, cuda::RingPosition<Layout<S>::kStages>& at,
                           const CUtensorMap* map, bool strided, int block, int batch) {
  cuda::mbarrier_wait(&shared.empty[at.slot], at.parity ^ 1);
  cuda::mbarrier_arrive_expect(&shared.full[at.slot], S::kStageBytes);
  for (int panel = 0; panel < S::kDim / S::kPanelDim; ++panel) {
    uint8_t* to = shared.keys[at.slot] + panel * S::kPanelBytes;
    if (strided)
      cuda::tma_load_4d(to, map, &shared.full[at.slot], panel * S::kPanelDim, sample_phase(block),
                        block * kBlockKeys, batch);
    else
      cuda::tma_load_3d(to, map, &shared.full[at.slot], panel * S::kPanelDim, block * kBlockKeys, batch);
  }
  at.advance();
}

template <class S>
__device__ void produce(const IndexSelectParams& p, const CUtensorMap* keys, const CUtensorMap* strided,
                        Layout<S>& shared, Header* header, int lane_limit, int works) {
  cuda::RingPosition<Layout<S>::kStages> at;
  const bool leader = (threadIdx.x & 31) == 0;
  for (int round = 0;; ++round) {
    if (leader) shared.tile = static_cast<int>(atomicAdd(&header->next_tile, 1u));
    tile_barrier<S>();
    // Only now has everyone read the flag of the last round, which the next one uses again.
    if (leader) shared.again[(round + 1) & 1] = 0;
    const int number = shared.tile;
    if (number >= works) return;
    const Work work = find_work<S>(p, lane_limit, number);
    const int batch = static_cast<int>(work.batch);
    if (leader) {
      load_block<S>(shared, at, work.samples > 0 ? strided : keys, work.samples > 0, 0, batch);
      for (int i = 0; i < work.samples; ++i) load_block<S>(shared, at, strided, true, i, batch);
      for (int i = 0; i < work.key_blocks; ++i) load_block<S>(shared, at, keys, false, i, batch);
    }
    tile_barrier<S>();
    if (shared.again[round & 1] != 0) {
      if (leader)
        for (int i = 0; i < work.key_blocks; ++i) load_block<S>(shared, at, keys, false, i, batch);
      tile_barrier<S>();
    }
  }
}

}  // namespace gsa::fused_select
