#include "gsa/train/cross_entropy.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "gsa/testing/random.h"

namespace gsa {
namespace {

struct Result {
  at::Tensor loss, hidden, weight;
};

Result gradients(const at::Tensor& hidden, const at::Tensor& weight, const auto& loss_of) {
  const at::Tensor h = hidden.detach().clone().requires_grad_();
  const at::Tensor w = weight.detach().clone().requires_grad_();
  const at::Tensor loss = loss_of(h, w);
  const auto gradient = torch::autograd::grad({loss * 3}, {h, w});
  return {loss.detach(), gradient[0], gradient[1]};
}

at::Tensor plain(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets) {
  return at::cross_entropy_loss(at::matmul(hidden, weight.t()), targets, {}, at::Reduction::Mean,
                                kIgnoredTarget);
}

double error(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

// What rounding the sum and the result to fp32 may cost: the reference's one number can be exact by luck.
double rounding(const at::Tensor& loss) {
  return 4 * std::numeric_limits<float>::epsilon() * loss.abs().item<double>();
}

TEST(ChunkedCrossEntropy, EqualsThePlainOneInDouble) {
  for (uint64_t index = 0; index < 12; ++index) {
    auto generator = testing::case_generator(index);
    const int64_t n = testing::draw(generator, 1, 40), d = testing::draw(generator, 1, 16),
                  v = testing::draw(generator, 2, 50);
    const auto options = at::TensorOptions(at::kDouble);
    const at::Tensor hidden = at::randn({n, d}, options), weight = at::randn({v, d}, options);
    at::Tensor targets = at::randint(0, v, {n}, at::kLong);
    targets.masked_fill_(at::rand({n}).lt(0.2), kIgnoredTarget);
    targets[0] = 0;
    const int64_t rows = testing::draw(generator, 0, n + 1);
    const auto expected = gradients(hidden, weight, [&](auto& h, auto& w) { return plain(h, w, targets); });
    const auto got = gradients(
        hidden, weight, [&](auto& h, auto& w) { return chunked_cross_entropy(h, w, targets, {}, rows); });
    EXPECT_LT(error(got.loss, expected.loss), 1e-12);
    EXPECT_LT(error(got.hidden, expected.hidden), 1e-12);
    EXPECT_LT(error(got.weight, expected.weight), 1e-12);
  }
}

TEST(ChunkedCrossEntropy, FloatKeepsTheToleranceRule) {
  const at::Tensor hidden = at::randn({300, 32}), weight = at::randn({500, 32}),
                   targets = at::randint(0, 500, {300}, at::kLong);
  const auto exact = gradients(hidden.to(at::kDouble), weight.to(at::kDouble),
                               [&](auto& h, auto& w) { return plain(h, w, targets); });
  const auto reference = gradients(hidden, weight, [&](auto& h, auto& w) { return plain(h, w, targets); });
  const auto got = gradients(hidden, weight,
                             [&](auto& h, auto& w) { return chunked_cross_entropy(h, w, targets, {}, 64); });
  EXPECT_LE(error(got.loss, exact.loss), 2 * error(reference.loss, exact.loss) + rounding(exact.loss));
  EXPECT_LE(error(got.hidden, exact.hidden), 2 * error(reference.hidden, exact.hidden));
  EXPECT_LE(error(got.weight, exact.weight), 2 * error(reference.weight, exact.weight));
}

TEST(ChunkedCrossEntropy, ProductsMayRunInBf16) {
  const at::Tensor hidden = at::randn({64, 32}), weight = at::randn({100, 32}),
                   targets = at::randint(0, 100, {64}, at::kLong);
  const auto exact = gradients(hidden.to(at::kDouble), weight.to(at::kDouble),
                               [&](auto& h, auto& w) { return plain(h, w, targets); });
  const auto reference = gradients(hidden, weight, [&](auto& h, auto& w) {
    const auto logits = at::matmul(h.to(at::kBFloat16), w.to(at::kBFloat16).t());
    return at::cross_entropy_loss(logits.to(at::kFloat), targets, {}, at::Reduction::Mean, kIgnoredTarget);
  });
  const auto got = gradients(hidden, weight, [&](auto& h, auto& w) {
    return chunked_cross_entropy(h, w, targets, at::kBFloat16, 16);
  });
  EXPECT_EQ(got.loss.scalar_type(), at::kFloat);
  EXPECT_EQ(got.weight.scalar_type(), at::kFloat);
  EXPECT_GT(error(got.hidden, exact.hidden), 1e-5);  // it did run in bf16
  EXPECT_LE(error(got.loss, exact.loss), 2 * error(reference.loss, exact.loss) + rounding(exact.loss));
  EXPECT_LE(error(got.hidden, exact.hidden), 2 * error(reference.hidden, exact.hidden));
  EXPECT_LE(error(got.weight, exact.weight), 2 * error(reference.weight, exact.weight));
}

TEST(ChunkedCrossEntropy, NeverHoldsTheLogitsOfAllTokens) {
  const int64_t rows = 16384, vocabulary = 16384;  // a gibibyte of fp32 logits
  const at::Tensor hidden = at::randn({rows, 8}), weight = at::randn({vocabulary, 8});
  const at::Tensor targets = at::randint(0, vocabulary, {rows}, at::kLong);
  const auto peak = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;  // KiB
  };
  const auto before = peak();
  gradients(hidden, weight, [&](auto& h, auto& w) { return chunked_cross_entropy(h, w, targets); });
  EXPECT_LT(peak() - before, 512 * 1024);
}

TEST(ChunkedCrossEntropy, SaysWhatIsWrong) {
  const at::Tensor hidden = at::randn({4, 8}), weight = at::randn({10, 8});
  EXPECT_THROW(chunked_cross_entropy(hidden, at::randn({10, 7}), at::zeros({4}, at::kLong)), c10::ValueError);
  EXPECT_THROW(chunked_cross_entropy(hidden, weight, at::zeros({4}, at::kInt)), c10::TypeError);
  EXPECT_THROW(chunked_cross_entropy(hidden, weight, at::zeros({4}, at::kLong).sub(1)), c10::ValueError);
}

}  // namespace
}  // namespace gsa
