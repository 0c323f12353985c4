// How the decode kernel divides a query's keys among CTAs and warps.
#include <gtest/gtest.h>

#include "gsa/ops/sparse_attention/sparse_attention_decode_params.h"

namespace gsa::decode {
namespace {

TEST(SparseAttentionDecode, FillsTheChipAndNoMore) {
  constexpr int kMultiprocessors = 132;
  for (int64_t batch = 1; batch <= 64; ++batch)
    for (const int groups : {1, 2, 4, 8, 16})
      for (const int capacity : {1, 16, 100, 2048, 4096}) {
        const int splits = attention_splits(batch, 1, groups, capacity, kMultiprocessors);
        const int warps = attention_warps(batch, 1, groups, kMultiprocessors);
        const int tiles = (capacity + kAttentionTile - 1) / kAttentionTile;
        EXPECT_EQ(splits & (splits - 1), 0);
        EXPECT_LE(splits, kMaxAttentionSplits);
        EXPECT_TRUE(splits == 1 || batch * groups * splits <= int64_t{2} * kMultiprocessors);
        EXPECT_TRUE(splits == 1 || (splits / 2) * warps < tiles) << "warps without a tile";
      }
}

TEST(SparseAttentionDecode, TheMeasuredChoices) {
  EXPECT_EQ(attention_warps(1, 1, 4, 132), 8);
  EXPECT_EQ(attention_splits(1, 1, 4, 2048, 132), 16);
  EXPECT_EQ(attention_warps(32, 1, 4, 132), 4);
  EXPECT_EQ(attention_splits(32, 1, 4, 2048, 132), 2);
  EXPECT_EQ(attention_splits(8, 1, 4, 2048, 132), 8);
}

}  // namespace
}  // namespace gsa::decode
