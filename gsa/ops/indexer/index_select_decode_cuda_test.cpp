// The decode kernel against fp64 scores. Skipped where no GPU is.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "gsa/base/device.h"
#include "gsa/ops/indexer/index_scores.h"
#include "gsa/ops/indexer/index_select.h"
#include "gsa/testing/random.h"
#include "gsa/testing/selection_oracle.h"
#include "gsa/testing/tolerance.h"
#ifdef GSA_CUDA
#include "gsa/ops/indexer/index_select_decode_cuda.h"
#endif

namespace gsa {
namespace {

using testing::row_of;
using testing::same_elements;

struct Inputs {
  at::Tensor query, key, weight, bias;
};

/// Whatever bf16 holds; scores differ in their last bits between devices.
Inputs random_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t dim) {
  return {at::randn({batch, queries, heads, dim}).to(at::kBFloat16),
          at::randn({batch, keys, dim}).to(at::kBFloat16), at::rand({batch, queries, heads}),
          at::randn({heads}) * 0.3};
}

/// Small whole numbers: with a hard sigmoid or ReLU every step is exact, and ties abound.
Inputs tied_inputs(int64_t batch, int64_t queries, int64_t keys, int64_t heads) {
  return {at::randint(-1, 2, {batch, queries, heads, 64}, at::kBFloat16),
          at::randint(-1, 2, {batch, keys, 64}, at::kBFloat16),
          at::randint(1, 9, {batch, queries, heads}, at::kFloat) / 8,
          at::randint(-4, 5, {heads}, at::kFloat) / 4};
}

IndexSelectOptions options_of(int64_t k, const std::string& activation, int64_t first, int64_t recent) {
  IndexSelectOptions options;
  options.k_base = options.k_max = k;
  options.k_min = std::max<int64_t>(1, first + recent);
  options.budget = "fixed";
  options.activation = activation;
  options.keep_first = first;
  options.keep_recent = recent;
  return options;
}

struct Selection {
  at::Tensor indices, counts, statistic;
};

Selection select(const Inputs& in, const IndexSelectOptions& options, at::Device device, double mean = 0.05) {
  const auto [indices, counts, statistic] =
      index_select(in.query.to(device), in.key.to(device), in.weight.to(device), in.bias.to(device),
                   at::full({}, mean, at::TensorOptions(device).dtype(at::kFloat)), options);
  return {indices.cpu(), counts.cpu(), statistic.cpu()};
}

at::Tensor scores64(const Inputs& in, const std::string& activation) {
  return index_scores(in.query.to(at::kDouble), in.key.to(at::kDouble), in.weight.to(at::kDouble),
                      in.bias.to(at::kDouble), activation);
}

/// Every key that the fp64 scores would choose differently lies within rounding of the boundary score.
void check_boundary(const at::Tensor& scores, const Selection& got, const IndexSelectOptions& options) {
  const int64_t queries = scores.size(1), keys = scores.size(2);
  for (int64_t b = 0; b < scores.size(0); ++b)
    for (int64_t t = 0; t < queries; ++t) {
      const int64_t position = t + keys - queries, count = got.counts[b][t].item<int64_t>();
      const std::vector<int64_t> row = row_of(got.indices, got.counts, b, t);
      ASSERT_EQ(static_cast<int64_t>(row.size()), count);
      ASSERT_EQ(count, std::min(options.k_base, position + 1));
      ASSERT_TRUE(std::is_sorted(row.begin(), row.end()));
      const at::Tensor score = scores[b][t].contiguous();
      const double* s = score.const_data_ptr<double>();
      double lowest = INFINITY, highest = -INFINITY;  // of the selected, of the others
      size_t next = 0;
      for (int64_t key = 0; key <= position; ++key) {
        const bool taken = next < row.size() && row[next] == key;
        next += taken;
        const bool kept = key < options.keep_first || key > position - options.keep_recent;
        if (kept) {
          ASSERT_TRUE(taken) << "kept key " << key;
        } else {
          (taken ? lowest : highest) = taken ? std::min(lowest, s[key]) : std::max(highest, s[key]);
        }
      }
      ASSERT_EQ(next, row.size());
      ASSERT_LE(highest - lowest, 2e-6 * std::max(1.0, std::abs(highest))) << "b " << b << " t " << t;
    }
}

class IndexSelectDecodeCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (testing::test_devices().size() < 2) GTEST_SKIP() << "no GPU";
  }
  const at::Device device_ = at::Device(at::kCUDA, 0);
};

TEST_F(IndexSelectDecodeCuda, AgreesWithFp64UpToRoundingAtTheBoundary) {
  auto generator = testing::case_generator(0);
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128})
      for (const char* activation : {"sigmoid", "hard_sigmoid", "relu"}) {
        const int64_t queries = testing::draw(generator, 1, 8),
                      keys = testing::draw(generator, queries, 3000);
        SCOPED_TRACE("J " + std::to_string(heads) + " I " + std::to_string(dim) + " T " +
                     std::to_string(queries) + " S " + std::to_string(keys) + " " + activation);
        const Inputs in = random_inputs(2, queries, keys, heads, dim);
        const IndexSelectOptions options = options_of(testing::draw(generator, 20, 600), activation, 4, 16);
        check_boundary(scores64(in, activation), select(in, options, device_), options);
      }
}

TEST_F(IndexSelectDecodeCuda, TiesGoToTheLowerPosition) {
  for (const int64_t keys : {100, 5000, 40000})
    for (const char* activation : {"hard_sigmoid", "relu"}) {
      const Inputs in = tied_inputs(2, 3, keys, 4);
      const IndexSelectOptions options = options_of(300, activation, 4, 32);
      const Selection expected = select(in, options, at::kCPU), got = select(in, options, device_);
      EXPECT_TRUE(same_elements(got.indices, expected.indices)) << keys << " " << activation;
      EXPECT_TRUE(same_elements(got.counts, expected.counts));
    }
}

TEST_F(IndexSelectDecodeCuda, OneScoreForAllKeys) {
  Inputs in = random_inputs(2, 2, 70000, 4, 64);
  in.key.zero_();
  const IndexSelectOptions options = options_of(2048, "sigmoid", 4, 128);
  const Selection got = select(in, options, device_);
  for (int64_t t = 0; t < 2; ++t) {
    const std::vector<int64_t> row = row_of(got.indices, got.counts, 1, t);
    ASSERT_EQ(row.size(), 2048u);
    for (int64_t i = 0; i < 2048 - 128; ++i) ASSERT_EQ(row[i], i);
    ASSERT_EQ(row.back(), 70000 - 2 + t);
  }
}

TEST_F(IndexSelectDecodeCuda, NearlyEqualScores) {
  Inputs in = random_inputs(1, 1, 120000, 4, 64);
  in.query = in.query * 1e-5;
  const IndexSelectOptions options = options_of(2048, "sigmoid", 0, 0);
  check_boundary(scores64(in, "sigmoid"), select(in, options, device_), options);
}

TEST_F(IndexSelectDecodeCuda, NanIsNeverSelectedAndCountsForNothing) {
  Inputs in = tied_inputs(2, 2, 3000, 4);
  in.key.slice(1, 0, 3000, 3).fill_(std::numeric_limits<float>::quiet_NaN());
  for (const int64_t k : {100, 2500}) {
    const IndexSelectOptions options = options_of(k, "hard_sigmoid", 4, 32);
    const Selection expected = select(in, options, at::kCPU), got = select(in, options, device_);
    EXPECT_TRUE(same_elements(got.indices, expected.indices)) << k;
    EXPECT_LE((got.statistic - expected.statistic).abs().max().item<float>(), 1e-5f);
  }
}

TEST_F(IndexSelectDecodeCuda, EveryBudgetRuleAgreesWithTheReference) {
  const Inputs in = random_inputs(2, 3, 4000, 4, 64);
  for (const auto& [rule, mean] : std::vector<std::pair<std::string, double>>{
           {"inverse", 0.02}, {"as_printed", 0.02}, {"entropy", 8.2}, {"max_score", 1.5}, {"random", 1.0}}) {
    SCOPED_TRACE(rule);
    IndexSelectOptions options = options_of(700, "sigmoid", 4, 32);
    options.k_base = 350;
    options.budget = rule;
    const Selection expected = select(in, options, at::kCPU, mean), got = select(in, options, device_, mean);
    EXPECT_LE((got.statistic - expected.statistic).abs().max().item<float>(),
              1e-4f * expected.statistic.abs().max().item<float>());
    EXPECT_LE((got.counts - expected.counts).abs().max().item<int>(), 1);  // the statistic's rounding
  }
}

TEST_F(IndexSelectDecodeCuda, OneMillionKeysAndRepeats) {
  const Inputs in = random_inputs(1, 1, 1 << 20, 4, 64);
  const IndexSelectOptions options = options_of(2048, "hard_sigmoid", 4, 128);
  const Selection first = select(in, options, device_), again = select(in, options, device_);
  EXPECT_TRUE(same_elements(first.indices, again.indices));
  EXPECT_TRUE(same_elements(first.statistic, again.statistic));
  check_boundary(scores64(in, "hard_sigmoid"), first, options);
}

TEST_F(IndexSelectDecodeCuda, Float8KeysAgreeWithFp64UpToRoundingAtTheBoundary) {
  auto generator = testing::case_generator(1);
  for (const int64_t heads : {1, 2, 4, 8})
    for (const int64_t dim : {32, 64, 128})  // 32: converted, there is no kernel
      for (const char* activation : {"sigmoid", "hard_sigmoid", "relu"}) {
        const int64_t queries = testing::draw(generator, 1, 8),
                      keys = testing::draw(generator, queries, 3000);
        SCOPED_TRACE("J " + std::to_string(heads) + " I " + std::to_string(dim) + " T " +
                     std::to_string(queries) + " S " + std::to_string(keys) + " " + activation);
        Inputs in = random_inputs(2, queries, keys, heads, dim);
        in.key = in.key.to(at::kFloat8_e4m3fn);
        const IndexSelectOptions options = options_of(testing::draw(generator, 20, 600), activation, 4, 16);
        check_boundary(scores64(in, activation), select(in, options, device_), options);
      }
}

TEST_F(IndexSelectDecodeCuda, Float8KeysWithTiesNanAndLargeQueries) {
  for (const int64_t keys : {100, 5000, 40000}) {
    Inputs in = tied_inputs(2, 3, keys, 4);
    in.key.slice(1, 0, keys, 7).fill_(std::numeric_limits<float>::quiet_NaN());
    in.key = in.key.to(at::kFloat8_e4m3fn);
    const IndexSelectOptions options = options_of(300, "relu", 4, 32);
    for (const double magnitude : {1.0, std::ldexp(1.0, 40), std::ldexp(1.0, -40)}) {
      Inputs scaled = in;
      scaled.query = in.query * magnitude;
      scaled.bias = in.bias * magnitude;
      const Selection expected = select(scaled, options, at::kCPU), got = select(scaled, options, device_);
      EXPECT_TRUE(same_elements(got.indices, expected.indices)) << keys << " times " << magnitude;
      EXPECT_TRUE(same_elements(got.counts, expected.counts));
    }
  }
}

TEST_F(IndexSelectDecodeCuda, Float8KeysOfAPrefill) {
  const IndexSelectOptions options = options_of(100, "hard_sigmoid", 4, 32);
  Inputs in = tied_inputs(1, 200, 700, 4);
  const Selection expected = select(in, options, device_);
  in.key = in.key.to(at::kFloat8_e4m3fn);
  const Selection got = select(in, options, device_);
  EXPECT_TRUE(same_elements(got.indices, expected.indices));
  EXPECT_TRUE(same_elements(got.statistic, expected.statistic));
}

#ifdef GSA_CUDA
TEST_F(IndexSelectDecodeCuda, RowsOfDifferentLengths) {
  const std::vector<int64_t> lengths = {5000, 0, 1, 2, 900, 64, 65};
  const auto batch = static_cast<int64_t>(lengths.size());
  const Inputs in = tied_inputs(batch, 2, 5000, 4);
  const IndexSelectOptions options = options_of(200, "hard_sigmoid", 4, 16);
  const at::Tensor on_device = at::tensor(lengths, at::kInt).to(device_);
  const auto result =
      index_select_decode(in.query.to(device_), in.key.to(device_), in.weight.to(device_),
                          in.bias.to(device_), std::nullopt, options, std::nullopt, on_device);
  if (!result) GTEST_SKIP() << "not a Hopper GPU";
  for (int64_t b = 0; b < batch; ++b) {
    SCOPED_TRACE("length " + std::to_string(lengths[b]));
    const at::Tensor counts = std::get<1>(*result)[b].cpu();
    if (lengths[b] < 2) {  // the first query lies before the cache
      EXPECT_EQ(counts[0].item<int>(), 0);
      EXPECT_EQ(counts[1].item<int>(), lengths[b]);
      continue;
    }
    Inputs row{in.query.slice(0, b, b + 1), in.key.slice(0, b, b + 1).slice(1, 0, lengths[b]),
               in.weight.slice(0, b, b + 1), in.bias};
    const Selection expected = select(row, options, at::kCPU);
    EXPECT_TRUE(same_elements(std::get<0>(*result)[b].cpu(), expected.indices[0]));
    EXPECT_TRUE(same_elements(counts, expected.counts[0]));
  }
}
#endif

}  // namespace
}  // namespace gsa
