#include "gsa/train/index_kl.h"

#include <gtest/gtest.h>

#include <set>

namespace gsa {
namespace {

TEST(DrawQueries, OneRunFromEachStratum) {
  std::set<int64_t> firsts;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    const auto runs = draw_queries(256, 1024, 64, seed);
    ASSERT_EQ(runs.size(), 4u);
    for (size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(runs[i].length, 64);
      EXPECT_EQ(runs[i].begin % 64, 0);
      EXPECT_EQ(runs[i].begin / 256, static_cast<int64_t>(i));
    }
    firsts.insert(runs[0].begin);
    const auto again = draw_queries(256, 1024, 64, seed);
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(runs[i].begin, again[i].begin);
  }
  EXPECT_EQ(firsts, (std::set<int64_t>{0, 64, 128, 192}));  // every place of a stratum is drawn
}

TEST(DrawQueries, AllWhenTheSampleIsNotSmaller) {
  for (int64_t queries : {0, 100, 200}) {
    const auto runs = draw_queries(queries, 100, 64, 1);
    ASSERT_EQ(runs.size(), 1u);
    EXPECT_EQ(runs[0].begin, 0);
    EXPECT_EQ(runs[0].length, 100);
  }
  EXPECT_EQ(draw_queries(10, 40, 64, 1)[0].length, 40);
  EXPECT_EQ(draw_queries(10, 1000, 64, 1).size(), 1u);
}

}  // namespace
}  // namespace gsa
