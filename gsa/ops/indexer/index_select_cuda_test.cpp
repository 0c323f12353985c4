// The fused kernel against fp64 scores and against the reference. Skipped where no GPU is.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "gsa/base/device.h"
#include "gsa/ops/indexer/index_scores.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/testing/random.h"
#include "gsa/testing/selection_oracle.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Inputs {
  at::Tensor query, key, weight, bias;

  Inputs on(at::Device device, at::ScalarType dtype) const {
    return {query.to(device, dtype), key.to(device, dtype), weight.to(device), bias.to(device)};
  }
};

/// Inputs that bf16 holds exactly, so that every dtype scores the same numbers.
Inputs random_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim) {
  return {at::randn({batch, queries, heads, dim}).to(at::kBFloat16),
          at::randn({batch, keys, dim}).to(at::kBFloat16), at::rand({batch, queries, heads}),
          at::randn({heads}) * 0.3};
}

/// Small whole numbers: with the root of `dim` a power of two, every product, sum and activation is exact in
/// fp32, and ties abound.
Inputs tied_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim) {
  return {at::randint(-1, 2, {batch, queries, heads, dim}, at::kBFloat16),
          at::randint(-1, 2, {batch, keys, dim}, at::kBFloat16),
          at::randint(1, 9, {batch, queries, heads}, at::kFloat) / 8,
          at::randint(-4, 5, {heads}, at::kFloat) / 4};
}

struct Selection {
  at::Tensor indices, counts, statistic;
};

Selection select(const Inputs& in, const IndexSelectOptions& options, double mean = 0.05) {
  const auto [indices, counts, statistic] =
      index_select(in.query, in.key, in.weight, in.bias, at::full({}, mean, in.weight.options()), options);
  return {indices, counts, statistic};
}

IndexSelectOptions make_options(int64_t k, const std::string& activation, int64_t first, int64_t recent) {
  IndexSelectOptions options;
  options.k_base = options.k_max = k;
  options.k_min = std::max<int64_t>(first + recent, 1);
  options.budget = "fixed";
  options.activation = activation;
  options.keep_first = first;
  options.keep_recent = recent;
  return options;
}

/// One row: the kept positions, the right number of others, in order, and none of them beaten in fp64 by one
/// left out by more than `slack`.
void check_row(const double* scores, int64_t position, const std::vector<int64_t>& row, int64_t budget,
               const IndexSelectOptions& options, double slack) {
  std::vector<char> chosen(position + 1, 0);
  for (size_t i = 0; i < row.size(); ++i) {
    ASSERT_GE(row[i], i == 0 ? 0 : row[i - 1] + 1);
    ASSERT_LE(row[i], position);
    chosen[row[i]] = 1;
  }
  double worst_chosen = kInfinity, best_left = -kInfinity;
  int64_t kept = 0, scored = 0;
  for (int64_t s = 0; s <= position; ++s) {
    if (s < options.keep_first || s > position - options.keep_recent) {
      ASSERT_TRUE(chosen[s]) << "kept position " << s;
      ++kept;
    } else if (scores[s] == scores[s]) {
      ++scored;
      if (chosen[s]) worst_chosen = std::min(worst_chosen, scores[s]);
      if (!chosen[s]) best_left = std::max(best_left, scores[s]);
    } else {
      ASSERT_FALSE(chosen[s]) << "NaN at " << s;
    }
  }
  ASSERT_EQ(static_cast<int64_t>(row.size()), std::min(budget, kept + scored));
  ASSERT_LE(best_left - worst_chosen, slack);
}

/// A whole selection. Slack: twice what scores in the same dtype are off from fp64, and the hardware's tanh.
void check_selection(const Inputs& in, const IndexSelectOptions& options, double mean = 0.05) {
  const Inputs device = in.on(at::Device(at::kCUDA, 0), at::kBFloat16), wide = in.on(at::kCPU, at::kDouble);
  const Selection selection = select(device, options, mean);
  const at::Tensor scores = index_scores(wide.query, wide.key, wide.weight.to(at::kDouble),
                                         wide.bias.to(at::kDouble), options.activation)
                                .contiguous();
  const at::Tensor narrow = index_scores(in.query, in.key, in.weight, in.bias, options.activation);
  // The hardware's tanh is off by up to 2^-11 a head, with a weight below one.
  const double hardware =
      options.activation == "sigmoid" ? std::ldexp(static_cast<double>(in.query.size(2)), -11) : 0;
  const double largest = scores.masked_fill(scores.isneginf(), 0).nan_to_num(0).abs().max().item<double>();
  const double slack = 2 * testing::max_error(narrow, scores.to(at::kFloat)) + hardware + 1e-5 * largest;
  const at::Tensor indices = selection.indices.cpu(), counts = selection.counts.cpu(),
                   statistic = selection.statistic.cpu();
  const int64_t queries = in.query.size(1), keys = in.key.size(1);
  for (int64_t b = 0; b < in.query.size(0); ++b) {
    const auto variance = testing::oracle_variance(scores[b]);
    for (int64_t t = 0; t < queries; ++t) {
      const int64_t position = t + keys - queries;
      const float found = statistic[b][t].item<float>();
      EXPECT_NEAR(found, variance[t], 2e-3 * variance[t] + 1e-6) << "query " << t;
      const int64_t budget = testing::oracle_budget(found, static_cast<float>(mean), position, options);
      const auto row = testing::row_of(indices, counts, b, t);
      SCOPED_TRACE(::testing::Message() << "batch " << b << " query " << t);
      check_row(scores[b][t].const_data_ptr<double>(), position, row, budget, options, slack);
      if (::testing::Test::HasFatalFailure()) return;
      ASSERT_TRUE(indices[b][t].slice(0, static_cast<int64_t>(row.size())).eq(-1).all().item<bool>());
    }
  }
}

/// The same problem where every score is exact: the very same rows as the reference's.
void check_exact(const Inputs& in, const IndexSelectOptions& options) {
  const Selection selection = select(in.on(at::Device(at::kCUDA, 0), at::kBFloat16), options);
  const Selection expected = select(in.on(at::kCPU, at::kDouble), options);
  EXPECT_TRUE(testing::same_elements(selection.counts.cpu(), expected.counts));
  EXPECT_TRUE(testing::same_elements(selection.indices.cpu(), expected.indices));
}

class IndexSelectCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(testing::run_seed());
  }
};

TEST_F(IndexSelectCuda, MatchesFp64OnEveryShape) {
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128})
      for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
        SCOPED_TRACE(::testing::Message() << heads << " heads of " << dim << ", " << activation);
        check_selection(random_inputs(1, 101, 333, heads, dim), make_options(40, activation, 4, 16));
      }
}

TEST_F(IndexSelectCuda, MatchesFp64OnRandomProblems) {
  for (int64_t trial = 0; trial < 12; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t queries = testing::draw(generator, 1, 200),
                  keys = queries + testing::draw(generator, 0, 300);
    IndexSelectOptions options = make_options(testing::draw(generator, 20, 90), "hard_sigmoid",
                                              testing::draw(generator, 0, 5), testing::draw(generator, 0, 9));
    options.k_base = testing::draw(generator, options.k_min, options.k_max);
    options.budget = std::vector<std::string>{"fixed", "inverse", "as_printed"}[trial % 3];
    SCOPED_TRACE(::testing::Message()
                 << "trial " << trial << ": T " << queries << " S " << keys << " " << options.budget);
    check_selection(random_inputs(testing::draw(generator, 1, 3), queries, keys, 4, 64), options);
  }
}

TEST_F(IndexSelectCuda, TiesGoToTheLowerPosition) {
  for (const std::string activation : {"hard_sigmoid", "relu"}) {
    check_exact(tied_inputs(2, 300, 700, 4, 64), make_options(50, activation, 3, 5));
    check_exact(tied_inputs(1, 130, 5000, 2, 64), make_options(64, activation, 0, 0));  // with a sampled gate
  }
  Inputs equal = tied_inputs(1, 100, 3000, 4, 64);
  equal.key = equal.key.slice(1, 0, 1).expand({1, 3000, 64}).contiguous();
  check_exact(equal, make_options(128, "hard_sigmoid", 0, 0));
}

TEST_F(IndexSelectCuda, RisingFallingAndMisleadingSamplesStayExact) {
  const int64_t keys = 6000;
  Inputs in = tied_inputs(1, 40, keys, 4, 64);
  const at::Tensor ramp = (at::arange(keys, at::kFloat) / 500).floor().view({1, keys, 1}).to(at::kBFloat16);
  in.query = at::ones({1, 40, 4, 64}, at::kBFloat16) / 8;
  for (const double sign : {1.0, -1.0}) {
    in.key = (ramp * sign / 16).expand({1, keys, 64}).contiguous();
    check_exact(in, make_options(200, "hard_sigmoid", 0, 0));
  }
  // Every sampled key far better, then far worse, than the others.
  for (const double sign : {1.0, -1.0}) {
    in.key = at::randint(-1, 2, {1, keys, 64}, at::kBFloat16) / 16;
    for (int64_t phase = 0; phase < 32; phase += 2) in.key.slice(1, phase, keys, 32).fill_(sign / 8);
    check_exact(in, make_options(200, "hard_sigmoid", 0, 0));
  }
}

TEST_F(IndexSelectCuda, NaNIsNeverSelected) {
  Inputs in = random_inputs(1, 150, 900, 4, 64);
  in.key.slice(1, 0, 900, 7).fill_(std::numeric_limits<double>::quiet_NaN());
  for (const std::string activation : {"sigmoid", "hard_sigmoid", "relu"}) {
    check_selection(in, make_options(60, activation, 1, 3));
    check_selection(in, make_options(1000, activation, 1, 3));
  }
}

TEST_F(IndexSelectCuda, SelectsAmongAMillionKeys) {
  const int64_t keys = 1 << 20;
  Inputs in = random_inputs(1, 2, keys, 4, 64);
  const at::Device gpu(at::kCUDA, 0);
  const IndexSelectOptions options = make_options(2048, "hard_sigmoid", 4, 128);
  const Selection selection = select(in.on(gpu, at::kBFloat16), options);
  const Inputs wide = in.on(gpu, at::kDouble);
  const at::Tensor scores = index_scores(wide.query, wide.key, wide.weight.to(at::kDouble),
                                         wide.bias.to(at::kDouble), "hard_sigmoid")
                                .cpu();
  for (int64_t t = 0; t < 2; ++t)
    check_row(scores[0][t].contiguous().const_data_ptr<double>(), t + keys - 2,
              testing::row_of(selection.indices.cpu(), selection.counts.cpu(), 0, t), 2048, options, 1e-5);
}

TEST_F(IndexSelectCuda, TheSameTwice) {
  const Inputs in = random_inputs(2, 700, 7000, 4, 64).on(at::Device(at::kCUDA, 0), at::kBFloat16);
  const IndexSelectOptions options = make_options(256, "sigmoid", 4, 128);
  const Selection once = select(in, options), again = select(in, options);
  EXPECT_TRUE(testing::same_elements(once.indices.cpu(), again.indices.cpu()));
  EXPECT_TRUE(testing::same_elements(once.counts.cpu(), again.counts.cpu()));
  EXPECT_TRUE(testing::same_elements(once.statistic.cpu(), again.statistic.cpu()));
}

TEST_F(IndexSelectCuda, OtherProblemsFallBackToTheReference) {
  const Inputs in = tied_inputs(1, 40, 80, 3, 16);  // three heads of sixteen
  check_exact(in, make_options(20, "hard_sigmoid", 1, 2));
  const Inputs wide = tied_inputs(1, 40, 80, 4, 64).on(at::Device(at::kCUDA, 0), at::kFloat);
  const IndexSelectOptions options = make_options(20, "hard_sigmoid", 1, 2);
  EXPECT_TRUE(testing::same_elements(select(wide, options).indices.cpu(),
                                     select(wide.on(at::kCPU, at::kDouble), options).indices));
}

}  // namespace
}  // namespace gsa
