#include "gsa/ops/indexer/index_select_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <vector>

#include "gsa/testing/random.h"

namespace gsa::fused_select {
namespace {

TEST(IndexSelectPlan, ListsHoldABudgetTwiceAndWhatALaneMayStage) {
  for (const int64_t keys : {1, 100, 4096, 131072, 1 << 20}) {
    for (const int k : {1, 31, 256, 2048, 4096}) {
      const int lane = lane_capacity(k, keys);
      const int64_t need = std::min<int64_t>(k, keys);
      EXPECT_GE(kLanesPerRow * lane, 2 * need);
      // After trimming, a list must have room for what a lane has staged.
      EXPECT_GE(lane - (need + kLanesPerRow - 1) / kLanesPerRow, kStaged);
      EXPECT_EQ(lane * 8 % 16, 0);
    }
  }
}

TEST(IndexSelectPlan, SampleLiesBeforeTheTile) {
  for (const int64_t first : {0, 5000, 65536, 131000, 1 << 20}) {
    const int blocks = sample_blocks(first, 1088);
    EXPECT_LE(int64_t{blocks} * kBlockKeys * kSampleStride, first);
    EXPECT_EQ(blocks == 0, first < 4 * 1088);
  }
}

TEST(IndexSelectPlan, SamplePhasesVisitEveryResidue) {
  std::set<int> phases;
  for (int block = 0; block < kSampleStride; ++block) {
    EXPECT_GE(sample_phase(block), 0);
    EXPECT_LT(sample_phase(block), kSampleStride);
    phases.insert(sample_phase(block));
  }
  EXPECT_EQ(phases.size(), static_cast<size_t>(kSampleStride));
}

// The gate from a sample must leave at least `need` survivors nearly always, and not far more than it has to.
TEST(IndexSelectPlan, SampleRankKeepsEnoughAndNotTooMuch) {
  auto generator = testing::case_generator(0);
  std::uniform_real_distribution<float> uniform;
  const int valid = 16384, samples = valid / kSampleStride, trials = 300;
  for (const int need : {256, 1024, 8192}) {
    int short_rows = 0;
    double survivors = 0;
    for (int trial = 0; trial < trials; ++trial) {
      std::vector<float> sample(samples);
      for (float& s : sample) s = uniform(generator);
      const int rank = sample_rank(samples, need, valid);
      ASSERT_LE(rank, samples);
      std::nth_element(sample.begin(), sample.begin() + rank - 1, sample.end(), std::greater<>());
      const float gate = sample[rank - 1];
      int above = 0;
      for (int i = 0; i < valid; ++i) above += uniform(generator) > gate;
      short_rows += above < need;
      survivors += above;
    }
    EXPECT_LE(short_rows, 1) << "need " << need;
    EXPECT_LT(survivors / trials, 4.0 * need) << "need " << need;
  }
  EXPECT_GT(sample_rank(64, 64, 64), 64);  // everything is wanted: no gate
}

TEST(IndexSelectPlan, TilesFitTheirWarpgroups) {
  for (const int heads : {1, 2, 4, 8})
    for (const int dim : {32, 64, 128})
      EXPECT_EQ(tile_queries(heads, dim), 32 * consumer_warpgroups(heads, dim));
  IndexSelectParams params;
  params.heads = 4;
  params.dim = 64;
  params.k_max = 2048;
  params.keys = 131072;
  EXPECT_EQ(workspace_bytes(params, 1), kHeaderBytes + size_t{96} * 4 * lane_capacity(2048, 131072) * 8);
}

}  // namespace
}  // namespace gsa::fused_select
