// sparse_decode is its two ops, and its kernel gives what they give.
#include "gsa/ops/sparse_decode/sparse_decode.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <string>
#include <tuple>

#include "gsa/base/device.h"
#include "gsa/ops/sparse_attention/sparse_attention.h"
#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

#ifdef GSA_CUDA
#include "gsa/ops/sparse_decode/sparse_decode_cuda.h"
#endif

namespace gsa {
namespace {

struct Step {
  at::Tensor query, key, value, index_query, index_key, head_weight, head_bias;
};

Step random_step(int64_t batch, int64_t tokens, int64_t keys, int64_t heads, int64_t groups, int64_t dim,
                 int64_t index_dim) {
  return {at::randn({batch, tokens, heads, dim}),
          at::randn({batch, keys, groups, dim}),
          at::randn({batch, keys, groups, dim}),
          at::randn({batch, tokens, 4, index_dim}),
          at::randn({batch, keys, index_dim}),
          at::rand({batch, tokens, 4}),
          at::randn({4}) * 0.3};
}

IndexSelectOptions options_of(int64_t k, int64_t first, int64_t recent,
                              const std::string& activation = "hard_sigmoid") {
  IndexSelectOptions options;
  options.k_base = options.k_max = k;
  options.k_min = first + recent > 0 ? first + recent : 1;
  options.budget = "fixed";
  options.activation = activation;
  options.keep_first = first;
  options.keep_recent = recent;
  return options;
}

SparseDecodeResult by_two_ops(const Step& s, const IndexSelectOptions& options) {
  const auto [indices, counts, statistic] =
      index_select(s.index_query, s.index_key, s.head_weight, s.head_bias, std::nullopt, options);
  const auto [out, lse] = sparse_attention(s.query, s.key, s.value, indices, counts);
  return {out, lse, counts, statistic};
}

SparseDecodeResult decode(const Step& s, const IndexSelectOptions& options) {
  return sparse_decode(s.query, s.key, s.value, s.index_query, s.index_key, s.head_weight, s.head_bias,
                       std::nullopt, options);
}

class SparseDecode : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(testing::run_seed()); }
};

TEST_F(SparseDecode, IsSelectionAndAttention) {
  for (const int64_t tokens : {1, 3}) {
    Step step = random_step(2, tokens, 50, 4, 2, 16, 16);
    step.query.requires_grad_(true);
    const IndexSelectOptions options = options_of(20, 2, 5);
    const SparseDecodeResult found = decode(step, options), expected = by_two_ops(step, options);
    EXPECT_TRUE(testing::same_elements(found.out, expected.out));
    EXPECT_TRUE(testing::same_elements(found.lse, expected.lse));
    EXPECT_TRUE(testing::same_elements(found.counts, expected.counts));
    EXPECT_TRUE(testing::same_elements(found.statistic, expected.statistic));
    found.out.sum().backward();
    EXPECT_TRUE(step.query.grad().defined());
  }
}

TEST_F(SparseDecode, NamesBadArguments) {
  const Step step = random_step(2, 1, 50, 4, 2, 16, 16);
  const auto message = [](const Step& bad, const IndexSelectOptions& options) -> std::string {
    try {
      decode(bad, options);
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "";
  };
  const auto expect = [&](const Step& bad, const std::string& name) {
    EXPECT_NE(message(bad, options_of(20, 2, 5)).find(name + " expected"), std::string::npos) << name;
  };
  Step bad = step;
  bad.index_key = step.index_key.slice(1, 0, 49);
  expect(bad, "index_key");
  bad = step;
  bad.value = step.value.slice(1, 0, 49);
  expect(bad, "value");
  bad = step;
  bad.index_query = step.index_query.slice(0, 0, 1);
  expect(bad, "index_key");
  IndexSelectOptions shared = options_of(20, 2, 5);
  shared.query_tile = 2;
  EXPECT_NE(message(step, shared).find("query_tile expected 1, got 2"), std::string::npos);
}

#ifdef GSA_CUDA

/// The parameter: whether index keys are e4m3, and not bf16.
class SparseDecodeCuda : public SparseDecode, public ::testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    if (!cuda_available()) GTEST_SKIP() << "no CUDA device";
    SparseDecode::SetUp();
  }
  static Step on_gpu(const Step& s) {
    const auto half = [](const at::Tensor& x) { return x.to(at::Device(at::kCUDA, 0), at::kBFloat16); };
    return {half(s.query),
            half(s.key),
            half(s.value),
            half(s.index_query),
            GetParam() ? half(s.index_key).to(at::kFloat8_e4m3fn) : half(s.index_key),
            s.head_weight.to(at::Device(at::kCUDA, 0)),
            s.head_bias.to(at::Device(at::kCUDA, 0))};
  }
};
INSTANTIATE_TEST_SUITE_P(Keys, SparseDecodeCuda, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Float8" : "Bf16"; });

SparseDecodeResult by_kernel(const Step& s, const IndexSelectOptions& options) {
  const auto found = sparse_decode_fused(s.query, s.key, s.value, s.index_query, s.index_key, s.head_weight,
                                         s.head_bias, options, 0.08838834764831845, 1);
  EXPECT_TRUE(found.has_value());
  return found.value_or(SparseDecodeResult{});
}

void check(const Step& s, const IndexSelectOptions& options) {
  const SparseDecodeResult found = by_kernel(s, options), again = by_kernel(s, options),
                           expected = by_two_ops(s, options);
  EXPECT_TRUE(testing::same_elements(found.counts.cpu(), expected.counts.cpu()));
  EXPECT_TRUE(testing::same_elements(found.out.cpu(), again.out.cpu()));
  EXPECT_TRUE(testing::same_elements(found.lse.cpu(), again.lse.cpu()));
  const auto norm = [](const at::Tensor& x) { return x.to(at::kDouble).norm().item<double>(); };
  EXPECT_LE(norm(found.out.to(at::kDouble) - expected.out), 5e-3 * norm(expected.out));
  EXPECT_LE(norm(found.lse - expected.lse), 1e-4 * norm(expected.lse));
  EXPECT_LE(norm(found.statistic - expected.statistic), 1e-4 * norm(expected.statistic) + 1e-9);
}

TEST_P(SparseDecodeCuda, TheKernelGivesWhatTheTwoOpsGive) {
  const std::tuple<int64_t, int64_t, int64_t> problems[] = {
      {1, 1, 1},         {2, 31, 40},    {1, 700, 140},   {3, 33333, 2048},
      {4, 131072, 2048}, {8, 5000, 300}, {33, 3000, 400}, {132, 900, 200}};
  int64_t number = 0;
  for (const auto& [batch, keys, k] : problems) {
    const std::string activation = std::array{"hard_sigmoid", "sigmoid", "relu"}[number++ % 3];
    SCOPED_TRACE(::testing::Message() << "B " << batch << " S " << keys << " k " << k << " " << activation);
    const Step step = on_gpu(random_step(batch, 1, keys, 16, 4, 128, 64));
    check(step, options_of(k, std::min<int64_t>(k / 4, 4), std::min<int64_t>(k / 4, 128), activation));
  }
}

TEST_P(SparseDecodeCuda, Ties) {
  for (const int64_t batch : {1, 8}) {
    Step step = random_step(batch, 1, 20000, 16, 4, 128, 64);
    step.index_query = at::randint(-1, 2, {batch, 1, 4, 64}, at::kFloat);
    step.index_key = at::randint(-1, 2, {batch, 20000, 64}, at::kFloat);
    step.head_weight = at::randint(1, 9, {batch, 1, 4}, at::kFloat) / 8;
    step.head_bias = at::randint(-4, 5, {4}, at::kFloat) / 4;
    check(on_gpu(step), options_of(1000, 4, 128));
    step.index_key = step.index_key.slice(1, 0, 1).expand({batch, 20000, 64}).contiguous();
    check(on_gpu(step), options_of(1000, 0, 0));  // one score for all
  }
}

TEST_P(SparseDecodeCuda, NaNOutsideTheSelectionStaysOutside) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  Step step = random_step(4, 1, 6000, 16, 4, 128, 64);
  for (at::Tensor* x : {&step.key, &step.value, &step.index_key}) x->slice(1, 100, 5500, 9).fill_(kNan);
  const Step there = on_gpu(step);
  EXPECT_FALSE(by_kernel(there, options_of(300, 4, 64)).out.isnan().any().item<bool>());
  check(there, options_of(300, 4, 64));
}

// One sequence's selection prefetches what attention reads, where it can.
TEST_P(SparseDecodeCuda, OneSequenceGivesWhatTheTwoOpsGive) {
  const Step whole = on_gpu(random_step(1, 1, 40000, 16, 4, 128, 64));
  Step view = whole, apart = whole;
  for (at::Tensor* x : {&view.key, &view.value, &view.index_key}) *x = x->slice(1, 3, 30001);
  for (at::Tensor* x : {&apart.key, &apart.value})
    *x = x->transpose(1, 2).contiguous().transpose(1, 2);          // a token's groups lie apart
  const Step odd = on_gpu(random_step(1, 1, 3000, 3, 3, 20, 64));  // not a multiple of 16 bytes
  for (const Step& step : {whole, view, apart, odd}) {
    const IndexSelectOptions options = options_of(1000, 4, 128);
    const SparseDecodeResult found = decode(step, options), expected = by_two_ops(step, options);
    EXPECT_TRUE(testing::same_elements(found.out.cpu(), expected.out.cpu()));
    EXPECT_TRUE(testing::same_elements(found.lse.cpu(), expected.lse.cpu()));
    EXPECT_TRUE(testing::same_elements(found.counts.cpu(), expected.counts.cpu()));
    EXPECT_TRUE(testing::same_elements(found.statistic.cpu(), expected.statistic.cpu()));
  }
}

// Caches are views of larger ones.
TEST_P(SparseDecodeCuda, ViewsOfCaches) {
  const Step whole = on_gpu(random_step(4, 1, 9000, 16, 4, 128, 64));
  Step part = whole;
  for (at::Tensor* x : {&part.key, &part.value, &part.index_key}) *x = x->slice(1, 0, 7001);
  check(part, options_of(512, 4, 128));
}

TEST_P(SparseDecodeCuda, OtherProblemsAreLeftToTheTwoOps) {
  const Step step = on_gpu(random_step(4, 1, 900, 16, 4, 64, 64));
  EXPECT_FALSE(sparse_decode_fused(step.query, step.key, step.value, step.index_query, step.index_key,
                                   step.head_weight, step.head_bias, options_of(300, 4, 64), 1, 1)
                   .has_value());
  const SparseDecodeResult found = decode(step, options_of(300, 4, 64)),
                           expected = by_two_ops(step, options_of(300, 4, 64));
  EXPECT_TRUE(testing::same_elements(found.out.cpu(), expected.out.cpu()));
}

#endif

}  // namespace
}  // namespace gsa
