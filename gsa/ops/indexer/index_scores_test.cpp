#include "gsa/ops/indexer/index_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gsa/testing/random.h"
#include "gsa/testing/tolerance.h"

namespace gsa {
namespace {

double activate_one(double z, std::string_view name) {
  if (name == "sigmoid") return 1 / (1 + std::exp(-z));
  if (name == "hard_sigmoid") return std::fmin(1, std::fmax(0, z / 4 + 0.5));
  return std::fmax(0, z);
}

/// Eq. 7 as loops.
at::Tensor oracle(const at::Tensor& query, const at::Tensor& key, const at::Tensor& weight,
                  const at::Tensor& bias, std::string_view name) {
  const int64_t batch = query.size(0), queries = query.size(1), heads = query.size(2), dim = query.size(3),
                keys = key.size(1);
  at::Tensor out = at::full({batch, queries, keys}, -std::numeric_limits<double>::infinity(), at::kDouble);
  const auto q = query.accessor<double, 4>();
  const auto k = key.accessor<double, 3>(), w = weight.accessor<double, 3>();
  const auto h = bias.accessor<double, 1>();
  auto result = out.accessor<double, 3>();
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t t = 0; t < queries; ++t) {
      for (int64_t s = 0; s <= t + keys - queries; ++s) {
        double score = 0;
        for (int64_t j = 0; j < heads; ++j) {
          double dot = 0;
          for (int64_t i = 0; i < dim; ++i) dot += q[b][t][j][i] * k[b][s][i];
          score += w[b][t][j] * activate_one(dot / std::sqrt(static_cast<double>(dim)) + h[j], name);
        }
        result[b][t][s] = score;
      }
    }
  }
  return out;
}

TEST(IndexScores, MatchesTheEquationOnRandomShapes) {
  for (int64_t trial = 0; trial < 9; ++trial) {
    auto generator = testing::case_generator(trial);
    const int64_t batch = testing::draw(generator, 1, 2), queries = testing::draw(generator, 1, 9);
    const int64_t keys = queries + testing::draw(generator, 0, 7), heads = testing::draw(generator, 1, 5),
                  dim = testing::draw(generator, 1, 33);
    const at::Tensor query = at::randn({batch, queries, heads, dim}, at::kDouble),
                     key = at::randn({batch, keys, dim}, at::kDouble);
    const at::Tensor weight = at::rand({batch, queries, heads}, at::kDouble),
                     bias = at::randn({heads}, at::kDouble);
    const std::string name = std::vector<std::string>{"sigmoid", "hard_sigmoid", "relu"}[trial % 3];
    const at::Tensor expected = oracle(query, key, weight, bias, name);
    EXPECT_LT(testing::max_error(index_scores(query, key, weight, bias, name), expected), 1e-12) << name;
    for (const auto& device : testing::test_devices()) {
      const at::Tensor scores =
          index_scores(query.to(device, at::kFloat), key.to(device, at::kFloat),
                       weight.to(device, at::kFloat), bias.to(device, at::kFloat), name);
      EXPECT_EQ(scores.scalar_type(), at::kFloat);
      EXPECT_LT(testing::max_error(scores, expected), 1e-4) << name;
    }
  }
}

TEST(IndexScores, Float8KeysScoreAsTheirValues) {
  const at::Tensor key = (at::randn({2, 30, 16}) * 3).to(at::kFloat8_e4m3fn);
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const at::Tensor query = at::randn({2, 9, 3, 16}, dtype).requires_grad_();
    const at::Tensor weight = at::rand({2, 9, 3}), bias = at::randn({3});
    for (const char* name : {"sigmoid", "hard_sigmoid", "relu"}) {
      const at::Tensor scores = index_scores(query, key, weight, bias, name);
      EXPECT_TRUE(testing::same_elements(scores, index_scores(query, key.to(dtype), weight, bias, name)));
      EXPECT_TRUE(scores.requires_grad());
    }
  }
}

TEST(IndexScores, BoundsOfTheSigmoid) {
  const at::Tensor scores =
      index_scores(at::randn({1, 8, 4, 16}), at::randn({1, 8, 16}), at::rand({1, 8, 4}), std::nullopt);
  const at::Tensor valid = scores.masked_select(scores.gt(-std::numeric_limits<double>::infinity()));
  EXPECT_EQ(valid.numel(), 36);
  EXPECT_TRUE(valid.gt(0).all().item<bool>());
  EXPECT_TRUE(valid.lt(4).all().item<bool>());
}

TEST(IndexScores, EqualLogitsScoreAlikeWhereverTheyLie) {
  for (const int64_t keys : {1, 7, 8, 9, 15, 17, 31, 33, 1001, 40003}) {
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor scores = index_scores(at::zeros({1, 1, 2, 4}, dtype), at::randn({1, keys, 4}, dtype),
                                             at::rand({1, 1, 2}, dtype), at::randn({2}, dtype));
      EXPECT_TRUE(scores.eq(scores.max()).all().item<bool>()) << keys << " keys, " << dtype;
    }
  }
}

TEST(IndexScores, RefusesBadArguments) {
  const at::Tensor query = at::randn({1, 4, 2, 8}), key = at::randn({1, 6, 8}), weight = at::rand({1, 4, 2});
  const auto message = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  };
  EXPECT_EQ(message([&] { index_scores(query, key.slice(2, 0, 7), weight, std::nullopt); }),
            "index_scores: index_key expected shape [B,S,I] = [1, any, 8], got [1, 6, 7]");
  EXPECT_EQ(message([&] { index_scores(query, key.slice(1, 0, 3), weight, std::nullopt); }),
            "index_scores: index_key expected at least as many keys S as there are queries T = 4, got S = 3");
  EXPECT_EQ(message([&] { index_scores(query, key, weight, std::nullopt, "tanh"); }),
            "index_scores: activation expected 'sigmoid', 'hard_sigmoid' or 'relu', got 'tanh'");
  EXPECT_EQ(message([&] { index_scores(query, key.to(at::kDouble), weight, std::nullopt); }),
            "index_scores: index_key expected the dtype of index_query (Float) or Float8_e4m3fn, got Double");
  EXPECT_EQ(message([&] {
              index_scores(query, key.to(at::kFloat8_e4m3fn).requires_grad_(), weight, std::nullopt);
            }),
            "index_scores: index_key expected to need no gradient in Float8_e4m3fn");
  EXPECT_THROW(index_scores(query, key.to(at::kDouble), weight, std::nullopt), c10::TypeError);
  EXPECT_THROW(index_scores(query, key, weight.slice(2, 0, 1), std::nullopt), c10::ValueError);
  EXPECT_THROW(index_scores(query, key, weight, at::randn({3})), c10::ValueError);
}

}  // namespace
}  // namespace gsa
