#include "gsa/ops/selection/select_topk.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "gsa/testing/random.h"
#include "gsa/testing/selection_oracle.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

void check_rows(const at::Tensor& scores, const at::Tensor& budget, int64_t max_k) {
  const auto [indices, counts] = select_topk(scores, budget, max_k);
  ASSERT_EQ(indices.sizes(), (std::vector<int64_t>{scores.size(0), scores.size(1), max_k}));
  for (int64_t b = 0; b < scores.size(0); ++b) {
    for (int64_t t = 0; t < scores.size(1); ++t) {
      const at::Tensor row = scores[b][t].to(at::kCPU, at::kDouble).contiguous();
      const std::vector<double> values(row.data_ptr<double>(), row.data_ptr<double>() + row.numel());
      EXPECT_EQ(testing::row_of(indices, counts, b, t),
                testing::oracle_topk(values, budget[b][t].item<int64_t>()));
      EXPECT_TRUE(indices[b][t].slice(0, counts[b][t].item<int64_t>()).eq(-1).all().item<bool>());
    }
  }
}

TEST(SelectTopk, MatchesTheOracleOnRandomShapes) {
  for (const auto& device : testing::test_devices()) {
    for (int64_t trial = 0; trial < 20; ++trial) {
      auto generator = testing::case_generator(trial);
      const int64_t batch = testing::draw(generator, 1, 2), rows = testing::draw(generator, 1, 5);
      const int64_t keys = testing::draw(generator, 1, 90), max_k = testing::draw(generator, 1, 100);
      const at::Tensor budget = at::randint(0, max_k + 1, {batch, rows}, at::kInt).to(device);
      check_rows(at::randn({batch, rows, keys}).to(device), budget, max_k);
      // Few distinct values: many ties.
      check_rows(at::randint(0, 4, {batch, rows, keys}, at::kFloat).to(device), budget, max_k);
    }
  }
}

TEST(SelectTopk, NanAndInfinity) {
  at::Tensor scores = at::randn({1, 2, 12});
  scores[0][0][3] = std::numeric_limits<float>::quiet_NaN();
  scores[0][0][5] = std::numeric_limits<float>::infinity();
  scores[0][1].fill_(std::numeric_limits<float>::quiet_NaN());
  scores[0][0].slice(0, 8).fill_(-std::numeric_limits<float>::infinity());
  for (const auto& device : testing::test_devices()) {
    const at::Tensor budget = at::full({1, 2}, 10, at::kInt).to(device);
    check_rows(scores.to(device), budget, 10);
    const auto [indices, counts] = select_topk(scores.to(device), budget, 10);
    EXPECT_EQ(counts[0][0].item<int>(), 7);
    EXPECT_EQ(counts[0][1].item<int>(), 0);
  }
}

TEST(SelectTopk, RefusesBadArguments) {
  const at::Tensor scores = at::randn({1, 2, 5});
  EXPECT_THROW(select_topk(scores[0], at::full({1, 2}, 1, at::kInt), 2), c10::ValueError);
  EXPECT_THROW(select_topk(scores, at::full({1, 2}, 1, at::kLong), 2), c10::TypeError);
  EXPECT_THROW(select_topk(scores, at::full({1, 3}, 1, at::kInt), 2), c10::ValueError);
  EXPECT_THROW(select_topk(scores, at::full({1, 2}, 3, at::kInt), 2), c10::ValueError);
  EXPECT_THROW(select_topk(scores, at::full({1, 2}, 0, at::kInt), 0), c10::ValueError);
}

}  // namespace
}  // namespace gsa
