// The parts of the layer: configuration, positions, cache, control selections.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "gsa/attention/config.h"
#include "gsa/attention/dense_attention.h"
#include "gsa/attention/indexer.h"
#include "gsa/attention/kv_cache.h"
#include "gsa/attention/rotary.h"
#include "gsa/attention/selection.h"
#include "gsa/base/error.h"

namespace gsa {
namespace {

at::Tensor draw(at::IntArrayRef sizes, uint64_t seed) {
  return at::randn(sizes, at::detail::createCPUGenerator(seed), at::TensorOptions().dtype(at::kDouble));
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(AttentionConfig, PresetsAndVariantsSetTheirSwitches) {
  GsaConfig config;
  config.budget = {"fixed", 2048, 256, 4096};
  apply_preset(config, "paper");
  EXPECT_EQ(config.indexer->activation, "sigmoid");
  EXPECT_EQ(config.indexer->keep_first + config.indexer->keep_recent, 0);
  EXPECT_EQ(config.indexer->head_reduction, "mean");
  EXPECT_EQ(config.budget.rule, "inverse");
  apply_preset(config, "recommended");
  EXPECT_EQ(config.indexer->activation, "hard_sigmoid");
  EXPECT_EQ(config.indexer->keep_first, 4);
  EXPECT_EQ(config.indexer->keep_recent, 128);
  EXPECT_EQ(config.indexer->index_rotary_dim, 32);
  EXPECT_EQ(config.indexer->head_reduction, "max");
  EXPECT_EQ(config.budget.rule, "fixed");
  for (const char* variant : {"dense", "gated", "sparse", "gsa"}) {
    apply_variant(config, variant);
    EXPECT_EQ(variant_name(config), variant);
    check_config(config);
  }
  EXPECT_THROW(apply_preset(config, "papers"), Error);
  EXPECT_THROW(apply_variant(config, "sprase"), Error);
}

TEST(AttentionConfig, PresetsFitSmallBudgets) {
  for (const int64_t k_min : {1, 2, 3, 8, 100}) {
    GsaConfig config;
    config.budget = {"fixed", 128, k_min, 256};
    apply_preset(config, "recommended");
    check_config(config);
  }
}

TEST(AttentionConfig, MistakesNameTheField) {
  GsaConfig config;
  config.budget.k_min = 100;
  EXPECT_EQ(message_of([&] { check_config(config); }),
            "gsa.budget.k_min: expected at least keep_first + keep_recent = 132, got 100");
  config = GsaConfig{};
  config.indexer->activation = "tanh";
  EXPECT_EQ(message_of([&] { check_config(config); }),
            "gsa.indexer.activation: expected sigmoid | hard_sigmoid | relu, got 'tanh'");
  config = GsaConfig{};
  config.indexer->index_rotary_dim = 65;
  EXPECT_EQ(message_of([&] { check_config(config); }),
            "gsa.indexer.index_rotary_dim: expected an even number up to index_dim 64, got 65");
  config = GsaConfig{};
  config.indexer->key_dtype = "fp8";
  EXPECT_EQ(message_of([&] { check_config(config); }),
            "gsa.indexer.key_dtype: expected compute | float8_e4m3fn, got 'fp8'");
  config = GsaConfig{};
  config.gates.initial = 1.0;
  EXPECT_EQ(message_of([&] { check_config(config); }),
            "gsa.gates.initial: expected a number between 0 and 1, got 1");
}

TEST(Indexer, Float8KeysAreRoundedOnceAndStoredExactly) {
  IndexerConfig config{2, 8, 4};
  for (const auto dtype : {at::kDouble, at::kFloat, at::kBFloat16}) {
    Indexer plain(16, config);
    plain.initialize(at::detail::createCPUGenerator(7));
    plain.parameters("", [&](const std::string&, at::Tensor& tensor) { tensor = tensor.to(dtype); });
    at::Tensor h = draw({2, 50, 16}, 8);
    h.select(1, 3).mul_(1e-3);
    h.select(1, 5).mul_(1e-6);
    h.select(1, 7).mul_(1e4);  // saturates: an e4m3 number without bound would be NaN
    Indexer rounding = plain;
    rounding.config.key_dtype = "float8_e4m3fn";
    rounding.key_proj.weight = plain.key_proj.weight.clone().requires_grad_();
    const at::Tensor exact = plain(h.to(dtype), {}).key, rounded = rounding(h.to(dtype), {}).key;
    EXPECT_TRUE(rounded.equal(exact.clamp(-448, 448).to(at::kFloat8_e4m3fn).to(dtype))) << dtype;
    EXPECT_FALSE(rounded.equal(exact));
    const at::Tensor key = draw({2, 50, 1, 2}, 10).to(dtype);
    LayerCache cache;
    cache.append({.key = key, .value = key, .index_key = rounding.project(h.to(dtype)).key.detach()},
                 rounding.has_float8_keys());
    EXPECT_EQ(cache.index_key().scalar_type(), at::kFloat8_e4m3fn);
    EXPECT_TRUE(cache.index_key().to(dtype).equal(rounded));
    // The gradient is that of the keys before rounding, where they did not saturate.
    const at::Tensor weight = draw({2, 50, 8}, 9).to(dtype);
    rounded.backward(weight);
    const at::Tensor inside = weight.masked_fill(exact.abs().gt(448), 0);
    const at::Tensor expected = at::einsum("bti,btd->id", {inside, h.to(dtype)});
    const double largest = expected.abs().max().item<double>();
    const double error = (rounding.key_proj.weight.grad() - expected).abs().max().item<double>();
    EXPECT_LT(error, (dtype == at::kBFloat16 ? 2e-2 : 1e-5) * largest) << dtype;
  }
}

TEST(Rotary, ScoresDependOnTheDistanceAlone) {
  const at::Tensor frequencies = rotary_frequencies({8, 10000.0});
  const at::Tensor x = draw({1, 1, 1, 12}, 1), y = draw({1, 1, 1, 12}, 2);
  const auto score = [&](int64_t a, int64_t b) {
    return (apply_rotary(x, rotary_table(frequencies, a, 1, at::kDouble)) *
            apply_rotary(y, rotary_table(frequencies, b, 1, at::kDouble)))
        .sum()
        .item<double>();
  };
  EXPECT_NEAR(score(3, 1), score(103, 101), 1e-9);
  EXPECT_GT(std::abs(score(3, 1) - score(3, 2)), 1e-6);
  // Dimensions beyond the rotated ones pass.
  EXPECT_TRUE(
      apply_rotary(x, rotary_table(frequencies, 7, 1, at::kDouble)).slice(-1, 8).equal(x.slice(-1, 8)));
  EXPECT_TRUE(apply_rotary(x, {}).equal(x));
}

TEST(Rotary, PairsAreHalfADimensionApart) {
  const at::Tensor frequencies = rotary_frequencies({4, 100.0});  // 1, 0.1
  const at::Tensor x = at::arange(1.0, 5.0, at::kDouble).view({1, 1, 1, 4});
  const at::Tensor turned = apply_rotary(x, rotary_table(frequencies, 2, 1, at::kDouble)).flatten();
  EXPECT_NEAR(turned[0].item<double>(), 1 * std::cos(2.0) - 3 * std::sin(2.0), 1e-7);
  EXPECT_NEAR(turned[2].item<double>(), 3 * std::cos(2.0) + 1 * std::sin(2.0), 1e-7);
  EXPECT_NEAR(turned[1].item<double>(), 2 * std::cos(0.2) - 4 * std::sin(0.2), 1e-7);
}

TEST(DenseAttention, EqualsTheDefinitionWithAndWithoutEarlierKeys) {
  const at::Tensor query = draw({2, 9, 4, 8}, 3), key = draw({2, 14, 2, 8}, 4),
                   value = draw({2, 14, 2, 8}, 5);
  const at::Tensor wide_key = key.repeat_interleave(2, 2), wide_value = value.repeat_interleave(2, 2);
  for (const int64_t queries : {9, 5, 1}) {
    for (const int64_t keys : {9, 14}) {
      if (keys == 9 && queries != 9) continue;
      const at::Tensor q = query.slice(1, 0, queries), k = key.slice(1, 0, keys), v = value.slice(1, 0, keys);
      at::Tensor logits = at::einsum("bthe,bshe->bths", {q, wide_key.slice(1, 0, keys)}) / std::sqrt(8.0);
      const at::Tensor future = at::arange(keys)
                                    .unsqueeze(0)
                                    .gt(at::arange(keys - queries, keys).unsqueeze(1))
                                    .view({1, queries, 1, keys});
      logits = logits.masked_fill(future, -INFINITY);
      const at::Tensor expected =
          at::einsum("bths,bshe->bthe", {logits.softmax(-1), wide_value.slice(1, 0, keys)});
      const auto [out, lse] = dense_attention(q, k, v, true);
      EXPECT_LT((out - expected).abs().max().item<double>(), 1e-13);
      EXPECT_LT((lse - logits.logsumexp(-1)).abs().max().item<double>(), 1e-13);
    }
  }
}

TEST(KvCache, KeepsWhatWasAppendedAcrossGrowth) {
  KvCache cache(1);
  const at::Tensor key = draw({2, 300, 2, 4}, 1), value = draw({2, 300, 2, 4}, 2),
                   index = draw({2, 300, 3}, 3);
  for (int64_t begin = 0, size = 1; begin < 300;
       begin += size, size = std::min<int64_t>(300 - begin, size * 3)) {
    cache.layer(0).append({.key = key.narrow(1, begin, size),
                           .value = value.narrow(1, begin, size),
                           .index_key = index.narrow(1, begin, size)});
  }
  EXPECT_EQ(cache.length(), 300);
  EXPECT_TRUE(cache.layer(0).key().equal(key));
  EXPECT_TRUE(cache.layer(0).value().equal(value));
  EXPECT_TRUE(cache.layer(0).index_key().equal(index));
  cache.truncate(10);
  EXPECT_EQ(cache.layer(0).key().size(1), 10);
  EXPECT_THROW(cache.truncate(11), c10::ValueError);
  EXPECT_THROW(
      cache.layer(0).append(
          {.key = key.narrow(0, 0, 1), .value = value.narrow(0, 0, 1), .index_key = index.narrow(0, 0, 1)}),
      c10::ValueError);
  EXPECT_THROW(cache.layer(0).append({.key = key, .value = value}), c10::ValueError);
  EXPECT_THROW(cache.layer(0).append({.key = key, .value = value, .index_key = index}, true),
               c10::ValueError);
}

TEST(KvCache, ReservingAllocatesOnce) {
  KvCache cache(1);
  cache.reserve(1000);
  cache.layer(0).append({.key = draw({1, 3, 1, 2}, 1), .value = draw({1, 3, 1, 2}, 1)});
  const int64_t bytes = cache.bytes();
  EXPECT_EQ(bytes, 2 * 1000 * 2 * 8);
  cache.layer(0).append({.key = draw({1, 997, 1, 2}, 1), .value = draw({1, 997, 1, 2}, 1)});
  EXPECT_EQ(cache.bytes(), bytes);
}

TEST(ControlSelection, WindowHoldsTheFirstAndTheLastTokens) {
  const at::Tensor query = draw({1, 20, 2, 4}, 1), key = draw({1, 20, 1, 4}, 2);
  SelectionOverride selection;
  selection.policy = SelectionPolicy::window;
  selection.first_tokens = 2;
  const auto [indices, counts] = select_control(selection, 0, query, key, at::full({1, 20}, 5, at::kInt), 6);
  EXPECT_TRUE(indices[0][19].equal(at::tensor({0, 1, 17, 18, 19, -1}, at::kInt)));
  EXPECT_TRUE(indices[0][3].equal(at::tensor({0, 1, 2, 3, -1, -1}, at::kInt)));
  EXPECT_EQ(counts[0][2].item<int>(), 3);
  selection.first_tokens = 9;  // the query's own token comes before all others
  const auto [crowded, unused] = select_control(selection, 0, query, key, at::full({1, 20}, 3, at::kInt), 3);
  EXPECT_TRUE(crowded[0][19].equal(at::tensor({0, 1, 19}, at::kInt)));
}

TEST(ControlSelection, OracleTakesTheHighestAttention) {
  const at::Tensor query = draw({2, 6, 4, 4}, 1), key = draw({2, 10, 2, 4}, 2);
  SelectionOverride selection;
  selection.policy = SelectionPolicy::oracle;
  const auto [indices, counts] = select_control(selection, 0, query, key, at::full({2, 6}, 3, at::kInt), 3);
  const at::Tensor logits = at::einsum("bthe,bshe->bhts", {query, key.repeat_interleave(2, 2)}) / 2.0;
  const at::Tensor attention = logits.select(2, 5).softmax(-1).mean(1);  // the last query sees everything
  const at::Tensor best = std::get<0>(std::get<1>(attention.topk(3, -1)).sort(-1));
  EXPECT_TRUE(best.to(at::kInt).equal(indices.select(1, 5)));
}

TEST(ControlSelection, RandomIsUniformReproducibleAndCausal) {
  const at::Tensor query = draw({1, 400, 1, 2}, 1), key = draw({1, 400, 1, 2}, 2);
  SelectionOverride selection;
  selection.policy = SelectionPolicy::random;
  const at::Tensor budget = at::full({1, 400}, 20, at::kInt);
  const auto [indices, counts] = select_control(selection, 1, query, key, budget, 20);
  const at::Tensor late = indices[0].slice(0, 200);
  EXPECT_LE((indices[0] - at::arange(400, at::kInt).unsqueeze(1)).max().item<int>(), 0);
  EXPECT_NEAR(late.to(at::kDouble).mean().item<double>(), 149.75, 6.0);  // half of the mean position
  EXPECT_TRUE(indices.equal(std::get<0>(select_control(selection, 1, query, key, budget, 20))));
  selection.seed = 1;
  EXPECT_FALSE(indices.equal(std::get<0>(select_control(selection, 1, query, key, budget, 20))));
}

}  // namespace
}  // namespace gsa
