#pragma once
// Problems for index_select's kernels and the judge of their answers: the same for the GPU and for the
// emulation.

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "gsa/ops/indexer/index_scores.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/testing/selection_oracle.h"
#include "gsa/testing/tolerance.h"

namespace gsa::testing {

struct SelectInputs {
  at::Tensor query, key, weight, bias;

  SelectInputs on(at::Device device, at::ScalarType dtype) const {
    return {query.to(device, dtype), key.to(device, dtype), weight.to(device), bias.to(device)};
  }
};

/// Inputs that bf16 holds exactly, so that every dtype scores the same numbers.
inline SelectInputs random_select_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                         int64_t dim) {
  return {at::randn({batch, queries, heads, dim}).to(at::kBFloat16),
          at::randn({batch, keys, dim}).to(at::kBFloat16), at::rand({batch, queries, heads}),
          at::randn({heads}) * 0.3};
}

/// Small whole numbers: with the root of `dim` a power of two, every product, sum and activation is exact in
/// fp32, and ties abound.
inline SelectInputs tied_select_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads,
                                       int64_t dim) {
  return {at::randint(-1, 2, {batch, queries, heads, dim}, at::kBFloat16),
          at::randint(-1, 2, {batch, keys, dim}, at::kBFloat16),
          at::randint(1, 9, {batch, queries, heads}, at::kFloat) / 8,
          at::randint(-4, 5, {heads}, at::kFloat) / 4};
}

/// Of the softmax that the entropy budget reads.
inline constexpr float kSelectLogScale = 1.1f;

/// What the budget rule reads, in fp64 from the scores [T,S] of one sequence.
inline std::vector<double> select_statistic(const at::Tensor& scores, const IndexSelectOptions& options) {
  if (options.budget != "entropy" && options.budget != "max_score") return oracle_variance(scores);
  std::vector<double> statistics;
  for (int64_t t = 0; t < scores.size(0); ++t) {
    const at::Tensor row = scores[t].slice(0, 0, t + 1 + scores.size(1) - scores.size(0));
    const at::Tensor valid = row.masked_select(~row.isnan());
    const at::Tensor p = (valid * std::exp(static_cast<double>(kSelectLogScale))).softmax(0);
    statistics.push_back(options.budget == "entropy" ? -(p * p.log()).sum().item<double>()
                                                     : valid.max().item<double>());
  }
  return statistics;
}

struct Selection {
  at::Tensor indices, counts, statistic;
};

/// Something that selects: an implementation on its device, given the inputs on the CPU. Its answer is on the
/// CPU again.
using Selector = std::function<Selection(const SelectInputs&, const IndexSelectOptions&, double mean)>;

/// The op itself on the inputs' device.
inline Selection select_where_it_is(const SelectInputs& in, const IndexSelectOptions& options, double mean) {
  const auto [indices, counts, statistic] =
      index_select(in.query, in.key, in.weight, in.bias, at::full({}, mean, in.weight.options()), options,
                   at::full({}, kSelectLogScale, in.weight.options()));
  return {indices, counts, statistic};
}

inline IndexSelectOptions make_select_options(int64_t k, const std::string& activation, int64_t first,
                                              int64_t recent) {
  IndexSelectOptions options;
  options.k_base = options.k_max = k;
  options.k_min = std::max<int64_t>(first + recent, 1);
  options.budget = "fixed";
  options.activation = activation;
  options.keep_first = first;
  options.keep_recent = recent;
  return options;
}

/// One row over the positions [0, end): the kept positions, the right number of others, in order, and none of
/// them beaten by one left out by more than `slack`. `worth` is NaN or -inf for what must not be chosen.
inline void check_row(const std::vector<double>& worth, const std::vector<int64_t>& row, int64_t budget,
                      const IndexSelectOptions& options, double slack) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto end = static_cast<int64_t>(worth.size());
  std::vector<char> chosen(end, 0);
  for (size_t i = 0; i < row.size(); ++i) {
    ASSERT_GE(row[i], i == 0 ? 0 : row[i - 1] + 1);
    ASSERT_LT(row[i], end);
    chosen[row[i]] = 1;
  }
  double worst_chosen = kInfinity, best_left = -kInfinity;
  int64_t kept = 0, scored = 0;
  for (int64_t s = 0; s < end; ++s) {
    if (s < options.keep_first || s >= end - options.keep_recent) {
      ASSERT_TRUE(chosen[s]) << "kept position " << s;
      ++kept;
    } else if (worth[s] > -kInfinity) {
      ++scored;
      if (chosen[s]) worst_chosen = std::min(worst_chosen, worth[s]);
      if (!chosen[s]) best_left = std::max(best_left, worth[s]);
    } else {
      ASSERT_FALSE(chosen[s]) << "NaN at " << s;
    }
  }
  ASSERT_EQ(static_cast<int64_t>(row.size()), std::min(std::max(budget, kept), kept + scored));
  ASSERT_LE(best_left - worst_chosen, slack);
}

/// A whole selection. Slack: twice what scores in the same dtype are off from fp64, and the hardware's tanh.
inline void check_selection(const SelectInputs& in, const IndexSelectOptions& options, const Selector& select,
                            double mean = 0.05) {
  const Selection found = select(in, options, mean);
  const SelectInputs wide = in.on(at::kCPU, at::kDouble);
  const at::Tensor scores = index_scores(wide.query, wide.key, wide.weight.to(at::kDouble),
                                         wide.bias.to(at::kDouble), options.activation)
                                .contiguous();
  const at::Tensor narrow = index_scores(in.query, in.key, in.weight, in.bias, options.activation);
  // The hardware's tanh is off by up to 2^-11 a head, with a weight below one.
  const double hardware =
      options.activation == "sigmoid" ? std::ldexp(static_cast<double>(in.query.size(2)), -11) : 0;
  const double largest = scores.masked_fill(scores.isneginf(), 0).nan_to_num(0).abs().max().item<double>();
  const double slack = 2 * max_error(narrow, scores.to(at::kFloat)) + hardware + 1e-5 * largest;
  const int64_t queries = in.query.size(1), keys = in.key.size(1), tile = options.query_tile;
  for (int64_t b = 0; b < in.query.size(0); ++b) {
    const auto expected = select_statistic(scores[b], options);
    std::vector<int64_t> budget;
    for (int64_t t = 0; t < queries; ++t) {
      const float statistic = found.statistic[b][t].item<float>();
      EXPECT_NEAR(statistic, expected[t], 2e-3 * expected[t] + 1e-6) << "query " << t;
      budget.push_back(oracle_budget(statistic, static_cast<float>(mean), t + keys - queries, options));
    }
    for (int64_t r = 0; r < found.counts.size(1); ++r) {
      SCOPED_TRACE(::testing::Message() << "batch " << b << " row " << r);
      auto row = row_of(found.indices, found.counts, b, r);
      ASSERT_TRUE(found.indices[b][r].slice(0, static_cast<int64_t>(row.size())).eq(-1).all().item<bool>());
      if (tile == 1) {
        const double* values = scores[b][r].const_data_ptr<double>();
        check_row({values, values + r + keys - queries + 1}, row, budget[r], options, slack);
      } else {
        // The tile's own positions come last; thresholds may be off as scores are.
        const int64_t begin = r * tile, end = std::min(begin + tile, queries), start = begin + keys - queries;
        ASSERT_GE(static_cast<int64_t>(row.size()), end - begin);
        for (int64_t t = end - 1; t >= begin; --t, row.pop_back()) ASSERT_EQ(row.back(), t + keys - queries);
        const int64_t k = *std::max_element(budget.begin() + begin, budget.begin() + end);
        check_row(oracle_margins(scores[b], budget, begin, end, options), row,
                  std::llrint(options.tile_factor * static_cast<double>(k)), options, 2 * slack);
        ASSERT_TRUE(row.empty() || row.back() < start);
      }
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

/// The same problem where every score is exact: the very same rows as the reference's.
inline void check_exact_selection(const SelectInputs& in, const IndexSelectOptions& options,
                                  const Selector& select, double mean = 0.05) {
  const Selection found = select(in, options, mean);
  const Selection expected = select_where_it_is(in.on(at::kCPU, at::kDouble), options, mean);
  EXPECT_TRUE(same_elements(found.counts, expected.counts));
  EXPECT_TRUE(same_elements(found.indices, expected.indices));
}

}  // namespace gsa::testing
