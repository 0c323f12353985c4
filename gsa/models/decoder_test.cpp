// The limits that must hold exactly: caching, k >= L, causality, independent batch rows, isolated gradients.

#include "gsa/models/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gsa/base/error.h"
#include "gsa/models/checkpoint.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

using testing::all_variants;
using testing::random_tokens;
using testing::tiny_config;
using testing::tiny_model;

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

at::Tensor hidden_of(Decoder& model, const at::Tensor& tokens, const ForwardOptions& options = {}) {
  const at::NoGradGuard no_gradient;
  return model.forward(tokens, options).hidden;
}

/// The hidden states of `tokens` fed through a cache in pieces of the given sizes, the last size repeated.
at::Tensor in_pieces(Decoder& model, const at::Tensor& tokens, std::vector<int64_t> sizes,
                     ForwardOptions options = {}) {
  KvCache cache(static_cast<int64_t>(model.layers().size()));
  options.cache = &cache;
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < tokens.size(1);) {
    const int64_t end = std::min(begin + sizes.front(), tokens.size(1));
    parts.push_back(hidden_of(model, tokens.slice(1, begin, end), options));
    begin = end;
    if (sizes.size() > 1) sizes.erase(sizes.begin());
  }
  EXPECT_EQ(cache.length(), tokens.size(1));
  return at::cat(parts, 1);
}

TEST(Decoder, CachedDecodingEqualsThePrefill) {
  for (const auto& [name, config] : all_variants()) {
    SCOPED_TRACE(name);
    Decoder model = tiny_model(config, at::kDouble);
    const at::Tensor tokens = random_tokens(config, 2, 70, 5);
    const at::Tensor whole = hidden_of(model, tokens);
    EXPECT_LT(largest_difference(whole, in_pieces(model, tokens, {1})), 1e-10);
    EXPECT_LT(largest_difference(whole, in_pieces(model, tokens, {37, 1, 1, 13, 5})), 1e-10);
    ForwardOptions dense;
    dense.mode = AttentionMode::dense;
    EXPECT_LT(
        largest_difference(hidden_of(model, tokens, dense), in_pieces(model, tokens, {9, 1, 30, 7}, dense)),
        1e-10);
  }
}

TEST(Decoder, ControlSelectionsEqualThePrefillToo) {
  Decoder model = tiny_model(tiny_config("gsa", "inverse"), at::kDouble);
  const at::Tensor tokens = random_tokens(model.config(), 2, 40, 6);
  for (const auto policy : {SelectionPolicy::random, SelectionPolicy::window, SelectionPolicy::oracle}) {
    ForwardOptions options;
    options.selection.policy = policy;
    EXPECT_LT(
        largest_difference(hidden_of(model, tokens, options), in_pieces(model, tokens, {11, 1, 3}, options)),
        1e-10);
  }
}

TEST(Decoder, Float8IndexKeysTakeOneByteInTheCache) {
  DecoderConfig config = tiny_config("gsa");
  Decoder model = tiny_model(config, at::kBFloat16);
  const at::Tensor tokens = random_tokens(config, 1, 20, 6);
  const auto layers = static_cast<int64_t>(model.layers().size());
  KvCache wide(layers), narrow(layers);
  ForwardOptions options;
  options.cache = &wide;
  hidden_of(model, tokens, options);
  IndexerConfig indexer = *config.gsa.indexer;
  indexer.key_dtype = "float8_e4m3fn";  // belongs to no parameter: a trained model may change it
  model.set_indexer_options(indexer);
  options.cache = &narrow;
  hidden_of(model, tokens, options);
  EXPECT_EQ(narrow.layer(0).index_key().scalar_type(), at::kFloat8_e4m3fn);
  EXPECT_EQ(wide.bytes() - narrow.bytes(), layers * 64 * indexer.index_dim);  // room for 64 tokens
  options.cache = &wide;
  EXPECT_THROW(hidden_of(model, tokens, options), c10::ValueError);
}

TEST(Decoder, LongPrefillInChunksOfQueriesIsTheSame) {
  for (const int64_t tile : {1, 4}) {
    DecoderConfig config = tiny_config("gsa", "inverse");
    config.gsa.indexer->query_tile = tile;
    Decoder model = tiny_model(config, at::kDouble);
    const at::Tensor tokens = random_tokens(config, 1, 50, 7);
    const at::Tensor whole = hidden_of(model, tokens);
    model.train_only([](const std::string&) { return false; });
    for (const int64_t chunk : {1, 14, 16}) {
      ForwardOptions chunked;
      chunked.query_chunk = chunk;
      EXPECT_LT(largest_difference(whole, hidden_of(model, tokens, chunked)), 1e-12) << tile << " " << chunk;
    }
  }
}

TEST(Decoder, EnoughKeysEqualDenseAttention) {
  for (const char* variant : {"sparse", "gsa"}) {
    for (const int64_t tile : {1, 4}) {
      DecoderConfig config = tiny_config(variant);
      config.gsa.budget = BudgetConfig{"fixed", 48, 48, 48};
      config.gsa.indexer->query_tile = tile;
      Decoder model = tiny_model(config, at::kDouble);
      const at::Tensor tokens = random_tokens(config, 2, 48, 8);
      ForwardOptions dense, selected;
      dense.mode = AttentionMode::dense;
      int64_t selections = 0;
      selected.observer = [&](const LayerTrace& trace) { selections += trace.indices.defined(); };
      const at::Tensor expected = hidden_of(model, tokens, dense);
      EXPECT_LT(largest_difference(hidden_of(model, tokens, selected), expected), 1e-12) << variant << tile;
      EXPECT_EQ(selections, static_cast<int64_t>(model.layers().size()));
      // Nobody asks for the selection: the layer attends densely, as it does not with one key less.
      EXPECT_TRUE(hidden_of(model, tokens).equal(expected));
      model.set_budget(BudgetConfig{"fixed", 47, 47, 48});
      EXPECT_FALSE(hidden_of(model, tokens).equal(expected));
    }
  }
}

TEST(Decoder, FewKeysDifferFromDenseAttention) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kDouble);
  const at::Tensor tokens = random_tokens(model.config(), 1, 48, 8);
  ForwardOptions dense;
  dense.mode = AttentionMode::dense;
  EXPECT_GT(largest_difference(hidden_of(model, tokens), hidden_of(model, tokens, dense)), 1e-3);
}

TEST(Decoder, NoQuerySeesItsFutureBitwise) {
  for (const auto& [name, config] : all_variants()) {
    for (const bool first_step : {false, true}) {
      SCOPED_TRACE(name + (first_step ? ", first training step" : ", trained"));
      Decoder model = tiny_model(config, at::kFloat);
      if (first_step) {
        for (auto& layer : model.layers()) layer.self_attn.budget.unset();
      }
      at::Tensor tokens = random_tokens(config, 2, 48, 9);
      ForwardOptions training;
      training.update_statistics = true;
      const at::Tensor before = model.forward(tokens, training).hidden.detach();
      tokens.slice(1, 30).copy_(random_tokens(config, 2, 18, 10));
      const at::Tensor after = model.forward(tokens, training).hidden.detach();
      EXPECT_TRUE(before.slice(1, 0, 30).equal(after.slice(1, 0, 30)));
      EXPECT_FALSE(before.equal(after));
    }
  }
}

TEST(Decoder, BatchRowsAreIndependent) {
  for (const auto& [name, config] : all_variants()) {
    SCOPED_TRACE(name);
    Decoder model = tiny_model(config, at::kDouble);
    const at::Tensor tokens = random_tokens(config, 3, 40, 11);
    const at::Tensor together = hidden_of(model, tokens);
    for (int64_t row = 0; row < 3; ++row) {
      EXPECT_LT(largest_difference(together[row], hidden_of(model, tokens.narrow(0, row, 1))[0]), 1e-11);
    }
    at::Tensor changed = tokens.clone();
    changed[1].copy_(random_tokens(config, 1, 40, 12)[0]);
    const at::Tensor again = hidden_of(model, changed);
    EXPECT_TRUE(together[0].equal(again[0]));
    EXPECT_TRUE(together[2].equal(again[2]));
  }
}

TEST(Decoder, ConvertingWithIdentityGatesKeepsEveryBit) {
  Decoder dense = tiny_model(tiny_config("dense"), at::kFloat);
  const at::Tensor tokens = random_tokens(dense.config(), 2, 40, 13);
  const at::Tensor expected = dense.logits(hidden_of(dense, tokens));
  Decoder converted = convert_dense(dense, tiny_config("gsa").gsa, 3);
  ForwardOptions options;
  options.mode = AttentionMode::dense;
  EXPECT_TRUE(expected.equal(converted.logits(hidden_of(converted, tokens, options))));
  EXPECT_EQ(variant_name(converted.config().gsa), "gsa");
  EXPECT_FALSE(hidden_of(converted, tokens).isnan().any().item<bool>());
  EXPECT_THROW(convert_dense(converted, tiny_config("gsa").gsa, 3), Error);
}

TEST(Decoder, TheSeedDecidesAndVariantsShareWhatTheyShare) {
  Decoder one = tiny_model(tiny_config("gsa"), at::kFloat, 5),
          two = tiny_model(tiny_config("gsa"), at::kFloat, 5);
  Decoder dense = tiny_model(tiny_config("dense"), at::kFloat, 5),
          other = tiny_model(tiny_config("gsa"), at::kFloat, 6);
  const auto a = one.named_parameters(), b = two.named_parameters();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(a[i].second.equal(b[i].second)) << a[i].first;
  EXPECT_TRUE(one.layers()[1].mlp.up_proj.weight.equal(dense.layers()[1].mlp.up_proj.weight));
  EXPECT_FALSE(one.embedding().equal(other.embedding()));
}

TEST(Decoder, GatesStartWhereAsked) {
  for (const double initial : {0.1, 0.5, 0.9}) {
    DecoderConfig config = tiny_config("gated");
    config.gsa.gates.initial = initial;
    Decoder model = tiny_model(config, at::kFloat);
    const auto& gate = model.layers()[0].self_attn.output_gate;
    EXPECT_NEAR(gate.bias.sigmoid().mean().item<double>(), initial, 1e-6);
    EXPECT_GT(gate.weight.abs().max().item<double>(), 0.0);
  }
}

TEST(Decoder, ScaledNormAndBiasesAreUsed) {
  DecoderConfig config = tiny_config("dense");
  config.attention_bias = config.mlp_bias = true;
  Decoder model = tiny_model(config, at::kFloat);
  EXPECT_TRUE(model.layers()[0].self_attn.o_proj.bias.defined());
  const at::Tensor tokens = random_tokens(config, 1, 8, 1);
  const at::Tensor before = hidden_of(model, tokens);
  const at::NoGradGuard no_gradient;
  model.layers()[0].mlp.down_proj.bias.add_(1.0);
  EXPECT_GT(largest_difference(before, hidden_of(model, tokens)), 1e-3);
}

TEST(Decoder, WrongTokensAreNamed) {
  Decoder model = tiny_model(tiny_config("dense"), at::kFloat);
  EXPECT_THROW(model.forward(at::zeros_like(random_tokens(model.config(), 1, 4, 1)).to(at::kInt)),
               c10::TypeError);
  EXPECT_THROW(model.forward(random_tokens(model.config(), 1, 4, 1)[0]), c10::ValueError);
  Decoder shapes(tiny_config("dense"));
  EXPECT_THROW(shapes.forward(random_tokens(model.config(), 1, 4, 1)), c10::ValueError);
}

}  // namespace
}  // namespace gsa
