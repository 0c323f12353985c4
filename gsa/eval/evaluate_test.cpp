#include "gsa/eval/evaluate.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gsa/base/config.h"
#include "gsa/base/error.h"

namespace gsa {
namespace {

constexpr int64_t kVocabulary = 48;
constexpr int64_t kLength = 96;

Decoder small_model(int64_t k) {
  DecoderConfig config;
  config.vocab_size = kVocabulary;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.tie_word_embeddings = true;
  config.initializer_range = 0.3;
  config.gsa.indexer->index_heads = 2;
  config.gsa.indexer->index_dim = 8;
  config.gsa.indexer->index_rotary_dim = 4;
  config.gsa.indexer->keep_first = 1;
  config.gsa.indexer->keep_recent = 4;
  config.gsa.budget.k_base = config.gsa.budget.k_min = config.gsa.budget.k_max = k;
  Decoder model(config);
  model.initialize(7);
  return model;
}

std::vector<at::Tensor> batches(int64_t count) {
  at::manual_seed(3);
  std::vector<at::Tensor> all;
  for (int64_t i = 0; i < count; ++i) all.push_back(at::randint(kVocabulary, {2, kLength + 1}, at::kLong));
  return all;
}

EvalOptions with(AttentionMode mode, SelectionPolicy policy = SelectionPolicy::indexer) {
  EvalOptions options;
  options.mode = mode;
  options.selection.policy = policy;
  return options;
}

TEST(LossAccumulator, MeansBucketsAndSpread) {
  LossAccumulator losses;
  at::Tensor values = at::zeros({2, 100}, at::kFloat);
  values.slice(1, 0, 64).fill_(2);
  values.slice(1, 64).fill_(1);
  values[1] += 0.5;
  losses.add(values);
  EXPECT_EQ(losses.tokens(), 200);
  EXPECT_NEAR(losses.loss(), 1.64 + 0.25, 1e-6);
  EXPECT_NEAR(losses.standard_error(), 0.25, 1e-6);  // two sequences, 0.5 apart
  const auto buckets = losses.buckets();
  ASSERT_EQ(buckets.size(), 2u);
  EXPECT_EQ(buckets[1].begin, 64);
  EXPECT_EQ(buckets[1].end, 100);
  EXPECT_EQ(buckets[1].tokens, 72);
  EXPECT_NEAR(buckets[0].loss, 2.25, 1e-6);
  EXPECT_NEAR(buckets[1].perplexity, std::exp(1.25), 1e-5);
  EXPECT_THROW(losses.add(at::zeros({1, 99})), Error);
}

TEST(TokenLosses, AreTheCrossEntropyOfEveryToken) {
  at::manual_seed(1);
  const at::Tensor hidden = at::randn({3, 700, 4}), weight = at::randn({9, 4}),
                   targets = at::randint(9, {3, 700}, at::kLong);
  const at::Tensor losses =
      token_losses(hidden, targets, [&](const at::Tensor& h) { return at::linear(h, weight); });
  const at::Tensor expected =
      -at::log_softmax(at::linear(hidden, weight), -1).gather(2, targets.unsqueeze(2)).squeeze(2);
  EXPECT_TRUE(at::allclose(losses, expected, 1e-5, 1e-5));
}

TEST(Evaluate, PerplexityIsThatOfTheLogits) {
  Decoder model = small_model(16);
  const auto data = batches(2);
  const EvalResult result = evaluate(model, data, with(AttentionMode::dense));
  double sum = 0;
  for (const auto& batch : data) {
    ForwardOptions options;
    options.mode = AttentionMode::dense;
    const at::Tensor logits = model.logits(model.forward(batch.slice(1, 0, kLength), options).hidden);
    sum += at::cross_entropy_loss(logits.flatten(0, 1), batch.slice(1, 1).flatten()).item<double>() / 2;
  }
  EXPECT_NEAR(result.loss, sum, 1e-5);
  EXPECT_NEAR(result.perplexity, std::exp(sum), 1e-3);
  EXPECT_EQ(result.tokens, 4 * kLength);
  EXPECT_GT(result.max_activation, 0);
  EXPECT_LE(result.mean_layer_max_activation, result.max_activation);
  EXPECT_FALSE(result.recall);
}

TEST(Evaluate, SelectingEverythingIsTheDenseModel) {
  Decoder model = small_model(kLength);
  const auto data = batches(1);
  const EvalResult dense = evaluate(model, data, with(AttentionMode::dense));
  const EvalResult sparse = evaluate(model, data, with(AttentionMode::sparse));
  EXPECT_NEAR(sparse.loss, dense.loss, 1e-5);
  EXPECT_NEAR(*sparse.first_token_attention, *dense.first_token_attention, 1e-5);
  EXPECT_NEAR(*sparse.mean_k, (kLength + 1) / 2.0, 1e-9);
  EXPECT_FALSE(sparse.recall);
}

TEST(Evaluate, TheOracleRecallsEverythingAndCapturesMost) {
  Decoder model = small_model(16);
  const auto data = batches(1);
  const EvalResult oracle = evaluate(model, data, with(AttentionMode::sparse, SelectionPolicy::oracle));
  EXPECT_NEAR(*oracle.recall, 1.0, 1e-6);
  for (const auto policy : {SelectionPolicy::indexer, SelectionPolicy::random, SelectionPolicy::window}) {
    const EvalResult other = evaluate(model, data, with(AttentionMode::sparse, policy));
    EXPECT_LT(*other.recall, 1.0);
    EXPECT_NEAR(*other.mean_k, *oracle.mean_k, 1e-9);  // equal k
    // The first layer's queries and keys are the same under every policy, so the oracle's mass is the largest
    // there.
    EXPECT_LE(*other.layers[0].captured_mass, *oracle.layers[0].captured_mass + 1e-6);
  }
}

TEST(Evaluate, PicturesShowWhatQueriesSelected) {
  Decoder model = small_model(16);
  EvalOptions options = with(AttentionMode::sparse);
  options.pictures = 3;
  const EvalResult result = evaluate(model, batches(2), options);
  ASSERT_EQ(result.pictures.size(), 6u);  // two layers
  EXPECT_EQ(result.picture_tokens.size(), static_cast<size_t>(kLength));
  for (const auto& picture : result.pictures) {
    EXPECT_EQ(picture.selected.size(), 16u);
    EXPECT_EQ(picture.selected.back(), picture.query);
    double sum = 0;
    for (const double value : picture.attention) sum += value;
    EXPECT_NEAR(sum, 1.0, 1e-5);
  }
  EXPECT_EQ(result.pictures.back().query, kLength - 1);
}

TEST(Evaluate, TablesAndJsonHoldTheNumbers) {
  Decoder model = small_model(16);
  EvalOptions dense = with(AttentionMode::dense), sparse = with(AttentionMode::sparse);
  dense.label = "dense";
  sparse.label = "selected";
  const auto data = batches(1);
  const std::vector<EvalResult> results{evaluate(model, data, dense), evaluate(model, data, sparse)};
  const std::string table = result_table(results);
  EXPECT_NE(table.find("selected"), std::string::npos);
  EXPECT_NE(table.find(" - "), std::string::npos);  // the dense row has no recall
  EXPECT_NE(bucket_table(results).find("64 - 95"), std::string::npos);
  const Json json = config_to_json(results[1]);
  EXPECT_NEAR(json["perplexity"].get<double>(), results[1].perplexity, 1e-12);
  EXPECT_EQ(json["layers"].size(), 2u);
  EXPECT_TRUE(config_to_json(results[0])["recall"].is_null());
  EXPECT_THROW(evaluate(model, {}, dense), Error);
}

}  // namespace
}  // namespace gsa
