#include "gsa/ops/sparse_attention/sparse_attention_heuristics.h"

#include <gtest/gtest.h>

#include <string>

namespace gsa::sparse_attention {
namespace {

TEST(SparseAttentionHeuristics, PacksEveryGroupIntoWholeQueries) {
  for (int group = 1; group <= 16; ++group) {
    for (const bool shared_rows : {false, true}) {
      SCOPED_TRACE("group " + std::to_string(group) + (shared_rows ? ", shared rows" : ""));
      const Packing packing = pack_group(3 * group, 3, shared_rows);
      EXPECT_GE(packing.padded, group);
      EXPECT_LT(packing.padded, 2 * group);
      EXPECT_EQ(packing.padded, 1 << packing.padded_log2);
      EXPECT_LE(packing.queries, kTileQueries);
      if (shared_rows) {
        EXPECT_EQ(packing.queries, kTileQueries);
      }
      // The sets of all parts hold the heads of the tile's queries, no more and no less.
      EXPECT_EQ(packing.sets * packing.parts * 64, packing.queries * packing.padded);
      EXPECT_LE(packing.sets, kMaxSets);
      // A warpgroup holds one set or two, of two warpgroups at most: registers.
      const int sets_of_one = packing.sets / packing.warpgroups;
      EXPECT_EQ(packing.sets % packing.warpgroups, 0);
      EXPECT_LE(sets_of_one, 2);
      EXPECT_LE(packing.warpgroups, sets_of_one == 1 ? kMaxWarpgroups : 2);
    }
  }
}

TEST(SparseAttentionHeuristics, WalksHoldSmallProblemsWhole) {
  EXPECT_EQ(walk_capacity(1, 4), kBlockKeys);
  EXPECT_EQ(walk_capacity(100, 2048), 128);        // never more keys than there are
  EXPECT_EQ(walk_capacity(1 << 20, 100), 6400);    // nor more than 64 rows hold
  EXPECT_EQ(walk_capacity(1 << 20, 2048), 16384);  // eight times the budget
  EXPECT_EQ(walk_capacity(1 << 20, 1 << 20), kMaxWalk);
  for (int keys = 1; keys < 70000; keys += 977) EXPECT_EQ(walk_capacity(keys, 700) % kBlockKeys, 0);
}

TEST(SparseAttentionHeuristics, WorkspaceStaysBoundedAndItsPartsApart) {
  for (const int64_t tiles : {int64_t{1}, int64_t{127}, int64_t{2048}, int64_t{16384}}) {
    SCOPED_TRACE("tiles " + std::to_string(tiles));
    const WalkWorkspace w = walk_workspace(tiles, 1 << 20, 2048);
    EXPECT_LE(w.bytes, size_t{300} << 20);
    EXPECT_GE(w.chunk_tiles, 1);
    EXPECT_LE(w.chunk_tiles, tiles);
    EXPECT_LE(w.builders, w.chunk_tiles);
    const size_t blocks = size_t(w.capacity) / kBlockKeys;
    EXPECT_LE(w.keys + size_t(w.chunk_tiles) * w.capacity * 4, w.masks);
    EXPECT_LE(w.masks + size_t(w.chunk_tiles) * blocks * kMaskWords * 8, w.blocks);
    EXPECT_LE(w.blocks + size_t(w.chunk_tiles) * 4, w.redo);
    EXPECT_LE(w.redo + size_t(tiles) * 4, w.scratch_keys);
    EXPECT_LE(w.scratch_keys + size_t(w.builders) * w.capacity * 4, w.scratch_masks);
    EXPECT_LE(w.scratch_masks + size_t(w.builders) * w.capacity * 8, w.bytes);
    for (const size_t offset : {w.masks, w.blocks, w.redo, w.scratch_keys, w.scratch_masks})
      EXPECT_EQ(offset % 256, 0u);
  }
}

TEST(SparseAttentionHeuristics, ChunksAreEven) {
  const WalkWorkspace w = walk_workspace(2048, 131072, 2048);
  EXPECT_EQ(2048 % w.chunk_tiles, 0);
}

}  // namespace
}  // namespace gsa::sparse_attention
