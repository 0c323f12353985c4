// A walk is the order in which one tile of up to 64 queries visits the keys that any of them selected: blocks
// of 64 keys, and for every query a 64-bit mask of the block's keys that it attends (selected and not in its
// future). It is built once and serves all heads.
#pragma once

#include "gsa/ops/sparse_attention/sparse_attention_heuristics.h"
#include "gsa/ops/sparse_attention/sparse_attention_params.h"

namespace gsa::sparse_attention {

struct Walks {
  int32_t* keys;            // [tiles of a round, capacity], spare places have their block's first key
  uint64_t* masks;          // [tiles of a round, capacity / 64, kMaskWords]
  int32_t* blocks;          // [tiles of a round]
  int32_t* overflow;        // list of the tiles with more keys than a usual walk holds: how many, then which
  int32_t* redo;            // list of the tiles that the generic kernel attends again
  int32_t* redone;          // [all tiles], nonzero where the tile is in that list
  int32_t* taken;           // items of this round that thread blocks took after their first
  int32_t* scratch_keys;    // [builders, segment]
  uint64_t* scratch_masks;  // [builders, segment]
  int capacity;
  int segment;
  int builders;
  bool long_walks;  // the rounds are over the tiles in `overflow`
};

// The tile at a place of the rounds; -1 past the last.
__device__ inline int tile_at(const Walks& walks, int place) {
  if (!walks.long_walks) return place;
  return place < walks.overflow[0] ? walks.overflow[1 + place] : -1;
}

__device__ inline void append(int32_t* list, int tile) {
  list[1 + atomicAdd(list, 1)] = tile;
}

// Builds the walks of the tiles at places [first, first + tiles), of packing.queries each, from per-query
// rows of indices. Usual walks note the tiles that they have no room for, and leave them with no block.
cudaError_t launch_build_walks(const SparseAttentionParams& params, const Walks& walks,
                               const Packing& packing, int first, int tiles, cudaStream_t stream);

}  // namespace gsa::sparse_attention
