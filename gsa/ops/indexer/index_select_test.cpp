#include "gsa/ops/indexer/index_select.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "gsa/ops/indexer/index_scores.h"
#include "gsa/testing/random.h"
#include "gsa/testing/selection_oracle.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

struct Inputs {
  at::Tensor query, key, weight, bias;
};

Inputs random_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim) {
  return {at::randn({batch, queries, heads, dim}, at::kDouble), at::randn({batch, keys, dim}, at::kDouble),
          at::rand({batch, queries, heads}, at::kDouble), at::randn({heads}, at::kDouble)};
}

/// Small whole numbers: every sum is exact in every dtype, and ties abound.
Inputs tied_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads) {
  return {at::randint(-1, 2, {batch, queries, heads, 4}, at::kDouble),
          at::randint(-1, 2, {batch, keys, 4}, at::kDouble), at::ones({batch, queries, heads}, at::kDouble),
          at::zeros({heads}, at::kDouble)};
}

IndexSelectOptions random_options(std::mt19937_64& generator) {
  IndexSelectOptions options;
  options.keep_first = testing::draw(generator, 0, 3);
  options.keep_recent = testing::draw(generator, 0, 5);
  options.k_min = options.keep_first + options.keep_recent + testing::draw(generator, 1, 4);
  options.k_max = options.k_min + testing::draw(generator, 0, 12);
  options.k_base = testing::draw(generator, options.k_min, options.k_max);
  options.query_tile = testing::draw(generator, 0, 1) == 0 ? 1 : testing::draw(generator, 2, 9);
  options.budget = std::vector<std::string>{"fixed", "inverse", "as_printed"}[testing::draw(generator, 0, 2)];
  options.activation =
      std::vector<std::string>{"sigmoid", "hard_sigmoid", "relu"}[testing::draw(generator, 0, 2)];
  return options;
}

/// Rows, counts and statistic against loops over the explicit scores.
void check(const Inputs& in, const IndexSelectOptions& options, float mean) {
  const auto [indices, counts, statistic] =
      index_select(in.query, in.key, in.weight, in.bias, at::full({}, mean, at::kFloat), options);
  const int64_t queries = in.query.size(1), keys = in.key.size(1);
  ASSERT_EQ(indices.size(2), selection_capacity(options));
  ASSERT_EQ(statistic.scalar_type(), at::kFloat);
  const at::Tensor scores = index_scores(in.query, in.key, in.weight, in.bias, options.activation);
  for (int64_t b = 0; b < in.query.size(0); ++b) {
    const auto variance = testing::oracle_variance(scores[b]);
    std::vector<int64_t> budget;
    for (int64_t t = 0; t < queries; ++t) {
      EXPECT_NEAR(statistic[b][t].item<double>(), variance[t], 1e-5 * (1 + variance[t]));
      budget.push_back(
          testing::oracle_budget(statistic[b][t].item<float>(), mean, t + keys - queries, options));
    }
    const auto rows = testing::oracle_rows(scores[b], budget, options);
    ASSERT_EQ(indices.size(1), static_cast<int64_t>(rows.size()));
    for (size_t r = 0; r < rows.size(); ++r) {
      EXPECT_EQ(testing::row_of(indices, counts, b, r), rows[r])
          << "row " << r << " tile " << options.query_tile;
      EXPECT_TRUE(indices[b][r].slice(0, rows[r].size()).eq(-1).all().item<bool>());
    }
  }
}

TEST(IndexSelect, MatchesTheOracleOnRandomShapes) {
  for (int64_t trial = 0; trial < 40; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t queries = testing::draw(generator, 1, 30),
                  keys = queries + (trial % 3 == 0 ? testing::draw(generator, 1, 20) : 0);
    const IndexSelectOptions options = random_options(generator);
    SCOPED_TRACE("trial " + std::to_string(trial));
    check(random_inputs(1 + trial % 2, queries, keys, testing::draw(generator, 1, 5),
                        testing::draw(generator, 1, 20)),
          options, 0.05f);
    check(tied_inputs(1, queries, keys, 2), options, 0.5f);
  }
}

TEST(IndexSelect, CoveringBudgetSelectsEverything) {
  const Inputs in = random_inputs(1, 9, 9, 2, 8);
  IndexSelectOptions options;
  options.budget = "fixed";
  for (int64_t tile : {1, 4}) {
    options.query_tile = tile;
    const auto [indices, counts, statistic] =
        index_select(in.query, in.key, in.weight, in.bias, std::nullopt, options);
    for (int64_t r = 0; r < counts.size(1); ++r)
      EXPECT_EQ(counts[0][r].item<int64_t>(), std::min<int64_t>(9, (r + 1) * tile));
  }
}

TEST(IndexSelect, NanScoresAreNeverSelectedAndCountForNothing) {
  Inputs in = random_inputs(1, 12, 12, 2, 4);
  in.key[0][5].fill_(std::numeric_limits<double>::quiet_NaN());
  IndexSelectOptions options;
  options.k_min = options.k_base = options.k_max = 20;
  options.budget = "fixed";
  const auto [indices, counts, statistic] =
      index_select(in.query, in.key, in.weight, in.bias, std::nullopt, options);
  EXPECT_FALSE(indices.eq(5).any().item<bool>());
  EXPECT_EQ(counts[0][11].item<int>(), 11);
  EXPECT_TRUE(statistic.isfinite().all().item<bool>());
  for (int64_t tile : {1, 5}) {
    options.query_tile = tile;
    check(in, options, 1.0f);
  }
}

TEST(IndexSelect, Float8KeysSelectAsTheirValues) {
  IndexSelectOptions options;
  options.k_min = 3, options.k_base = 6, options.k_max = 9, options.keep_first = 1, options.keep_recent = 2;
  const at::Tensor mean = at::full({}, 0.03f);
  for (const int64_t tile : {1, 4}) {
    options.query_tile = tile;
    const Inputs in = random_inputs(2, 12, 40, 2, 8);
    at::Tensor key = in.key.to(at::kFloat8_e4m3fn);
    key.view(at::kByte)[0][17].fill_(0x7f);  // NaN
    const auto got = index_select(in.query, key, in.weight, in.bias, mean, options);
    const auto expected = index_select(in.query, key.to(at::kDouble), in.weight, in.bias, mean, options);
    EXPECT_TRUE(testing::same_elements(std::get<0>(got), std::get<0>(expected)));
    EXPECT_TRUE(testing::same_elements(std::get<2>(got), std::get<2>(expected)));
    const auto meta = index_select(in.query.to(at::kMeta), key.to(at::kMeta), in.weight.to(at::kMeta),
                                   in.bias.to(at::kMeta), mean, options);
    EXPECT_EQ(std::get<0>(meta).sizes(), std::get<0>(got).sizes());
    EXPECT_THROW(index_select(in.query, key.to(at::kFloat8_e5m2), in.weight, in.bias, mean, options),
                 c10::TypeError);
  }
}

TEST(IndexSelect, EqualScoresUnderInverseTakeTheLargestBudget) {
  Inputs in = random_inputs(1, 30, 30, 2, 4);
  in.query.zero_();
  IndexSelectOptions options;
  options.k_min = 2, options.k_base = 4, options.k_max = 7;
  const auto [indices, counts, statistic] =
      index_select(in.query, in.key, in.weight, in.bias, at::full({}, 1.0f), options);
  EXPECT_EQ(statistic.abs().max().item<float>(), 0.0f);
  EXPECT_EQ(testing::row_of(indices, counts, 0, 29), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
}

TEST(IndexSelect, EntropyMaximumAndRandomRules) {
  const Inputs in = random_inputs(1, 20, 24, 3, 8);
  IndexSelectOptions options;
  options.k_min = 2, options.k_base = 8, options.k_max = 16;
  const at::Tensor log_scale = at::full({}, 0.7, at::kDouble), mean = at::full({}, 1.0f);
  const at::Tensor scores = index_scores(in.query, in.key, in.weight, in.bias)[0];
  for (const char* rule : {"entropy", "max_score", "random"}) {
    options.budget = rule;
    const auto [indices, counts, statistic] =
        index_select(in.query, in.key, in.weight, in.bias, mean, options, log_scale);
    for (int64_t t = 0; t < 20; ++t) {
      const at::Tensor valid = scores[t].slice(0, 0, t + 5);
      const float measured = statistic[0][t].item<float>();
      if (options.budget == "entropy") {
        const at::Tensor p = (valid * std::exp(0.7)).softmax(0);
        EXPECT_NEAR(measured, -(p * p.log()).sum().item<double>(), 1e-5);
      } else if (options.budget == "max_score") {
        EXPECT_NEAR(measured, valid.max().item<double>(), 1e-5);
      } else {
        EXPECT_GE(measured, 0.5);
        EXPECT_LT(measured, 1.5);
      }
      EXPECT_EQ(counts[0][t].item<int64_t>(), testing::oracle_budget(measured, 1.0f, t + 4, options));
    }
  }
}

TEST(IndexSelect, RowsDoNotDependOnTheBatchOrTheFuture) {
  const Inputs in = random_inputs(2, 25, 25, 2, 8);
  IndexSelectOptions options;
  options.k_min = 4, options.k_base = 6, options.k_max = 9, options.keep_first = 1, options.keep_recent = 2;
  const at::Tensor mean = at::full({}, 0.03f);
  const auto [indices, counts, statistic] = index_select(in.query, in.key, in.weight, in.bias, mean, options);
  const auto one = [](const at::Tensor& x) { return x.slice(0, 1, 2); };
  const auto [alone, alone_counts, alone_statistic] =
      index_select(one(in.query), one(in.key), one(in.weight), in.bias, mean, options);
  EXPECT_TRUE(testing::same_elements(alone, one(indices)));
  const at::Tensor key = in.key.clone();
  key.slice(1, 15).mul_(-3);
  const auto [changed, changed_counts, changed_statistic] =
      index_select(in.query, key, in.weight, in.bias, mean, options);
  EXPECT_TRUE(testing::same_elements(changed.slice(1, 0, 15), indices.slice(1, 0, 15)));
  EXPECT_TRUE(testing::same_elements(changed_statistic.slice(1, 0, 15), statistic.slice(1, 0, 15)));
}

TEST(IndexSelect, RefusesBadArguments) {
  const Inputs in = random_inputs(1, 4, 4, 2, 8);
  const auto message = [&](auto&& change) -> std::string {
    IndexSelectOptions options;
    options.budget = "fixed";
    change(options);
    try {
      index_select(in.query, in.key, in.weight, in.bias, std::nullopt, options);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  };
  EXPECT_EQ(message([](auto& options) { options.budget = "inverse"; }),
            "index_select: running_mean expected one number for the budget 'inverse', got none");
  EXPECT_EQ(message([](auto& options) { options.budget = "fix"; }),
            "index_select: budget expected 'fixed', 'inverse', 'as_printed', 'entropy', 'max_score' or "
            "'random', got 'fix'");
  EXPECT_EQ(message([](auto& options) { options.keep_recent = 300; }),
            "index_select: k_min expected at least keep_first + keep_recent = 300, got 256");
  EXPECT_EQ(message([](auto& options) { options.k_max = 5; }),
            "index_select: k_max expected at least k_min = 256, got 5");
  EXPECT_EQ(message([](auto& options) { options.query_tile = 0; }),
            "index_select: query_tile expected a positive number, got 0");
}

TEST(IndexSelect, EmptyInputs) {
  const Inputs in = random_inputs(1, 4, 4, 2, 8);
  IndexSelectOptions options;
  options.budget = "fixed";
  const auto [indices, counts, statistic] =
      index_select(in.query.slice(1, 0, 0), in.key, in.weight.slice(1, 0, 0), in.bias, std::nullopt, options);
  EXPECT_EQ(indices.sizes(), (std::vector<int64_t>{1, 0, 4096}));
  const auto [none, none_counts, none_statistic] =
      index_select(in.query.slice(0, 0, 0), in.key.slice(0, 0, 0), in.weight.slice(0, 0, 0), in.bias,
                   std::nullopt, options);
  EXPECT_EQ(none.sizes(), (std::vector<int64_t>{0, 4, 4096}));
}

}  // namespace
}  // namespace gsa
