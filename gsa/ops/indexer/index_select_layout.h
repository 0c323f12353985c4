// A thread block of the fused index_select: its shared memory, its roles and the work it takes.
#pragma once

#include "gsa/cuda/launch.h"
#include "gsa/cuda/mbarrier.h"
#include "gsa/cuda/tma.h"
#include "gsa/ops/indexer/index_select_finish.h"
#include "gsa/ops/indexer/index_select_plan.h"
#include "gsa/ops/indexer/index_select_score.h"
#include "gsa/ops/indexer/index_select_stage.h"

namespace gsa::fused_select {

// Head of the workspace, made by look_for_wild_keys.
struct Header {
  static constexpr int kLookers = 128;  // blocks that look at the keys

  unsigned next_tile;
  unsigned rows_again;  // whether any shared rows are done again
  unsigned unused[2];
  unsigned wild[kLookers];  // whether the block saw a key that needs the careful path

  // By a whole warp.
  __device__ __forceinline__ bool wild_keys() const {
    const uint4 four = reinterpret_cast<const uint4*>(wild)[threadIdx.x & 31];
    return __any_sync(0xffffffffu, (four.x | four.y | four.z | four.w) != 0);
  }
};
static_assert(sizeof(Header) <= kHeaderBytes && Header::kLookers == 128);

// A warpgroup's keys as they stream by.
template <class S>
struct KeyRing {
  static constexpr int kStages = 3;

  alignas(1024) uint8_t keys[kStages][S::kStageBytes];
  uint64_t full[kStages];
  uint64_t empty[kStages];

  __device__ __forceinline__ void init() {
    for (int i = 0; i < kStages; ++i) {
      cuda::mbarrier_init(&full[i], 1);
      cuda::mbarrier_init(&empty[i], 4);
    }
  }
};

// With what the warpgroup and the warp that feeds it tell each other.
template <class S>
struct Group : KeyRing<S> {
  int tile;
  int again[2];
  int flush_request;  // the product after which the warps shall flush
};

// What a warp works with: while it samples, while keys stream, and while it finishes rows.
union alignas(16) WarpScratch {
  uint32_t sampled[8][kBins];
  uint2 staged[kStaged][kStagedStep / 8];
  FinishScratch finish;
};

template <class S>
struct Layout {
  static constexpr int kWarps = 4 * S::kConsumers;
  static constexpr int kThreads = 128 * (1 + S::kConsumers);
  static constexpr int kConsumerRegisters = S::kConsumers == 3 ? 160 : 232;
  static constexpr int kProducerRegisters = S::kConsumers == 3 ? 32 : 40;

  Group<S> groups[S::kConsumers];
  WarpScratch warps[kWarps];
  RowNotes notes[kWarps][32];
};

struct Work {
  int64_t batch;
  int64_t first_query;
  int64_t first_position;  // of the first query
  int key_blocks;          // blocks that hold a key any query of the tile may see
  int samples;             // strided blocks before them
};

// Longest tiles first, so that the last ones to finish are short.
__device__ __forceinline__ Work find_work(const IndexSelectParams& p, int row_limit, int number) {
  const int tiles = static_cast<int>((p.queries + kTileQueries - 1) / kTileQueries);
  Work work;
  work.batch = number % p.batch;
  work.first_query = static_cast<int64_t>(tiles - 1 - number / static_cast<int>(p.batch)) * kTileQueries;
  work.first_position = work.first_query + p.keys - p.queries;
  const int64_t end = min(p.keys, work.first_position + kTileQueries);
  work.key_blocks = static_cast<int>((end + kBlockKeys - 1) / kBlockKeys);
  // The first query's candidates lie before this.
  const int64_t before = work.first_position - work.first_query % p.query_tile;
  work.samples = sample_blocks(before, row_limit);
  return work;
}

// Whether a tile has queries of shared rows that are done again; always true the first time.
__device__ __forceinline__ bool is_wanted(const IndexSelectParams& p, const Work& work) {
  if (p.again == nullptr) return true;
  const int32_t* again = p.again + work.batch * rows_of(p);
  const int64_t end = min(p.queries, work.first_query + kTileQueries);
  bool wanted = false;
  for (int64_t row = work.first_query / p.query_tile; row * p.query_tile < end; ++row)
    wanted |= again[row] != 0;
  return wanted;
}

// The first of the tile's rows, where the rows of all tiles lie side by side, sequence by sequence.
__device__ __forceinline__ int64_t first_row_of(const IndexSelectParams& p, const Work& work) {
  const int64_t tiles = (p.queries + kTileQueries - 1) / kTileQueries;
  return work.batch * tiles * kTileQueries + work.first_query;
}

// Of a warpgroup and the warp that feeds it.
__device__ __forceinline__ void tile_barrier(int group) {
  cuda::named_barrier<128 + 32>(group + 1);
}

// ---- producers: one warp for each warpgroup; lane 0 feeds the ring

template <class S>
__device__ void load_block(KeyRing<S>& ring, cuda::RingPosition<KeyRing<S>::kStages>& at,
                           const CUtensorMap* map, bool strided, int block, int batch) {
  cuda::mbarrier_wait(&ring.empty[at.slot], at.parity ^ 1);
  cuda::mbarrier_arrive_expect(&ring.full[at.slot], S::kStageBytes);
  for (int panel = 0; panel < S::kDim / S::kPanelDim; ++panel) {
    uint8_t* to = ring.keys[at.slot] + panel * S::kPanelBytes;
    if (strided)
      cuda::tma_load_4d(to, map, &ring.full[at.slot], panel * S::kPanelDim, sample_phase(block),
                        block * kBlockKeys, batch);
    else
      cuda::tma_load_3d(to, map, &ring.full[at.slot], panel * S::kPanelDim, block * kBlockKeys, batch);
  }
  at.advance();
}

template <class S>
__device__ void produce(const IndexSelectParams& p, const CUtensorMap* keys, const CUtensorMap* strided,
                        Group<S>& group, int group_number, Header* header, int row_limit, int works) {
  cuda::RingPosition<Group<S>::kStages> at;
  const bool leader = (threadIdx.x & 31) == 0;
  for (int round = 0;; ++round) {
    if (leader) {
      const int first = group_number * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
      const int others = S::kConsumers * static_cast<int>(gridDim.x);
      group.tile = round == 0 ? first : others + static_cast<int>(atomicAdd(&header->next_tile, 1u));
    }
    tile_barrier(group_number);
    // Only now has everyone read the flag of the last round, which the next one uses again.
    if (leader) group.again[(round + 1) & 1] = 0;
    const int number = group.tile;
    if (number >= works) return;
    const Work work = find_work(p, row_limit, number);
    if (!is_wanted(p, work)) {
      tile_barrier(group_number);  // everyone has read the number
      continue;
    }
    const int batch = static_cast<int>(work.batch);
    if (leader) {
      load_block<S>(group, at, work.samples > 0 ? strided : keys, work.samples > 0, 0, batch);
      for (int i = 0; i < work.samples; ++i) load_block<S>(group, at, strided, true, i, batch);
      for (int i = 0; i < work.key_blocks; ++i) load_block<S>(group, at, keys, false, i, batch);
    }
    tile_barrier(group_number);
    if (group.again[round & 1] != 0) {
      if (leader)
        for (int i = 0; i < work.key_blocks; ++i) load_block<S>(group, at, keys, false, i, batch);
      tile_barrier(group_number);
    }
  }
}

}  // namespace gsa::fused_select
