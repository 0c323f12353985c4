// How the decode kernel divides rows of different lengths among CTAs.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "gsa/ops/indexer/index_select_decode_params.h"
#include "gsa/testing/random.h"

namespace gsa::decode {
namespace {

TEST(IndexSelectDecode, PartsCoverEveryRowAndFitTheGrid) {
  auto generator = testing::case_generator(0);
  for (int trial = 0; trial < 300; ++trial) {
    const int batch = static_cast<int>(testing::draw(generator, 1, kMaxRowsPerLaunch));
    const int ctas = static_cast<int>(testing::draw(generator, kMaxRowsPerLaunch, 160));
    const int64_t keys = testing::draw(generator, 1, trial % 3 == 0 ? 300 : 2000000);
    std::vector<int64_t> lengths(batch);
    for (int64_t& length : lengths) length = trial % 4 == 0 ? keys : testing::draw(generator, 0, keys);
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    int used = 0;
    for (const int64_t length : lengths) {
      const int splits = row_splits(length, total, batch, ctas);
      const int64_t part = part_keys(length, splits);
      used += splits;
      EXPECT_GE(splits, 1);
      EXPECT_GE(part * splits, length);
      EXPECT_EQ(part % 64, 0);
      EXPECT_LE(part, longest_part(keys, batch, ctas)) << "length " << length << " of " << total;
    }
    EXPECT_LE(used, ctas);
  }
}

TEST(IndexSelectDecode, EqualRowsGetEqualShares) {
  EXPECT_EQ(row_splits(131072, 131072, 1, 132), 132);
  EXPECT_EQ(row_splits(131072, int64_t{32} * 131072, 32, 132), 4);
  EXPECT_EQ(row_splits(131072, int64_t{64} * 131072, 64, 132), 2);
  EXPECT_EQ(row_splits(0, 0, 8, 132), 1);
}

}  // namespace
}  // namespace gsa::decode
