// A walk is the order in which one tile of up to 64 queries visits the keys that any of them selected: blocks
// of 64 keys, and for every query a 64-bit mask of the block's keys that it attends (selected and not in its
// future). It is built once and serves all heads.
#pragma once

#include "gsa/ops/sparse_attention/sparse_attention_heuristics.h"
#include "gsa/ops/sparse_attention/sparse_attention_params.h"

namespace gsa::sparse_attention {

struct Walks {
  int32_t* keys;    // [tiles, capacity], -1 in the spare places of the last block
  uint64_t* masks;  // [tiles, capacity / 64, kMaskWords]
  int32_t* blocks;  // [tiles]
  int32_t* redo;  // [all tiles], nonzero where the generic kernel attends the tile: here when the walk has no
                  // room for it
  int32_t* scratch_keys;    // [builders, capacity]
  uint64_t* scratch_masks;  // [builders, capacity]
  int capacity;
  int builders;
};

// Builds the walks of tiles [first_tile, first_tile + tiles), of tile_queries each, from per-query rows of
// indices.
cudaError_t launch_build_walks(const SparseAttentionParams& params, const Walks& walks, int tile_queries,
                               int first_tile, int tiles, cudaStream_t stream);

}  // namespace gsa::sparse_attention
