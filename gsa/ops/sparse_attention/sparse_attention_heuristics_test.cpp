#include "gsa/ops/sparse_attention/sparse_attention_heuristics.h"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST(SparseAttentionHeuristics, SetsHaveWholeQuartersOrParts) {
  for (int group = 1; group <= 16; ++group) {
    SCOPED_TRACE("group " + std::to_string(group));
    const Packing packing = pack_group(group, 1, false);
    const int queries = 64 / packing.padded, quarters = set_quarters(packing);
    for (int set = 0; set < packing.sets * packing.parts; ++set) {
      // The distances of a set are those of the quarters around its first query.
      const int first = set * queries / 16 / quarters * quarters * 16;
      EXPECT_LE(first, set * queries);
      EXPECT_GE(first + quarters * 16, set * queries + queries);
    }
  }
}

TEST(SparseAttentionHeuristics, WalksHoldSmallProblemsWhole) {
  EXPECT_EQ(walk_capacity(1, 4, 64), kBlockKeys);
  EXPECT_EQ(walk_capacity(100, 2048, 64), 128);        // never more keys than there are
  EXPECT_EQ(walk_capacity(1 << 20, 100, 64), 6400);    // nor more than 64 rows hold
  EXPECT_EQ(walk_capacity(1 << 20, 2048, 64), 16384);  // eight times the budget
  EXPECT_EQ(walk_capacity(1 << 20, 1 << 20, 64), kMaxSegment);
  for (int keys = 1; keys < 70000; keys += 977) EXPECT_EQ(walk_capacity(keys, 700, 48) % kBlockKeys, 0);
}

TEST(SparseAttentionHeuristics, LongWalksHoldTheWorstCase) {
  for (const int tile_queries : {48, 64}) {
    for (int keys = 16385; keys < 1000000; keys = keys * 5 / 4) {
      for (const int budget : {350, 1000, 2048, 4096}) {
        SCOPED_TRACE(std::to_string(keys) + " keys, budget " + std::to_string(budget));
        const int64_t all = distinct_keys(keys, budget, tile_queries);
        // Most segments, and each with one key in its last block.
        constexpr int64_t kShortest = kLongSegment + 1;
        const int64_t blocks = all / kShortest * (round_up(kShortest, kBlockKeys) / kBlockKeys) +
                               round_up(all % kShortest, kBlockKeys) / kBlockKeys;
        const int capacity = long_walk_capacity(keys, budget, tile_queries);
        EXPECT_LE(blocks * kBlockKeys, capacity);
        EXPECT_EQ(capacity % kBlockKeys, 0);
        const WalkWorkspace w = walk_workspace(1000, keys, budget, tile_queries);
        if (w.long_walks.tiles == 0) {
          EXPECT_GE(w.usual.capacity, all);
          continue;
        }
        EXPECT_EQ(w.long_walks.capacity, capacity);
        // What is found before a segment ends: at most its limit, and a whole range more.
        EXPECT_GE(w.long_walks.segment, std::min<int64_t>(all, kLongSegment + kWalkRange));
        EXPECT_LE(w.long_walks.segment, kMaxSegment);
      }
    }
  }
}

TEST(SparseAttentionHeuristics, ShortProblemsHaveNoRoundsForLongWalks) {
  EXPECT_EQ(walk_workspace(171, 8192, 2048, 48).long_walks.tiles, 0);
  EXPECT_EQ(walk_workspace(342, 16384, 2048, 48).long_walks.tiles, 0);
  EXPECT_GT(walk_workspace(683, 32768, 2048, 48).long_walks.tiles, 0);
}

void expect_apart(const WalkRound& round, int64_t tiles, size_t start) {
  EXPECT_GE(round.tiles, 1);
  EXPECT_LE(round.tiles, tiles);
  EXPECT_LE(round.builders, round.tiles);
  const size_t blocks = size_t(round.capacity) / kBlockKeys;
  EXPECT_GE(round.keys, start);
  EXPECT_LE(round.keys + size_t(round.tiles) * round.capacity * 4, round.masks);
  EXPECT_LE(round.masks + size_t(round.tiles) * blocks * kMaskWords * 8, round.blocks);
  EXPECT_LE(round.blocks + size_t(round.tiles) * 4, round.scratch_keys);
  EXPECT_LE(round.scratch_keys + size_t(round.builders) * round.segment * 4, round.scratch_masks);
  EXPECT_LE(round.scratch_masks + size_t(round.builders) * round.segment * 8, round.end);
  for (const size_t offset : {round.keys, round.masks, round.blocks, round.scratch_keys, round.scratch_masks})
    EXPECT_EQ(offset % 256, 0u);
}

TEST(SparseAttentionHeuristics, WorkspaceStaysBoundedAndItsPartsApart) {
  for (const int budget : {2048, 8192}) {
    for (const int64_t tiles : {int64_t{1}, int64_t{127}, int64_t{2731}, int64_t{21846}}) {
      SCOPED_TRACE("tiles " + std::to_string(tiles) + ", budget " + std::to_string(budget));
      const WalkWorkspace w = walk_workspace(tiles, 1 << 20, budget, 48);
      EXPECT_LE(w.bytes, size_t(budget == 2048 ? 280 : 440) << 20);
      EXPECT_LE(w.notes.overflow + size_t(tiles + 1) * 4, w.notes.redo);
      EXPECT_LE(w.notes.redo + size_t(tiles + 1) * 4, w.notes.redone);
      EXPECT_LE(w.notes.redone + size_t(tiles) * 4, w.notes.taken);
      EXPECT_LE(w.notes.taken + 4, w.notes.bytes);
      expect_apart(w.usual, tiles, w.notes.bytes);
      expect_apart(w.long_walks, tiles, w.notes.bytes);
      EXPECT_LE(w.usual.end, w.bytes);
      EXPECT_LE(w.long_walks.end, w.bytes);
    }
  }
  EXPECT_LE(walk_workspace(2731, 131072, 2048, 48).bytes, size_t{245} << 20);
}

TEST(SparseAttentionHeuristics, RoundsAreEven) {
  const WalkWorkspace w = walk_workspace(2731, 131072, 2048, 48);
  for (const WalkRound& round : {w.usual, w.long_walks}) {
    const int rounds = tiles_of(2731, round.tiles);
    EXPECT_LE(rounds * round.tiles - 2731, rounds);
  }
}

}  // namespace
}  // namespace gsa::sparse_attention
