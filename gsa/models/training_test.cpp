// What training relies on: isolated gradients, recomputed activations, the running mean's order of events,
// traces.

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/matmul.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "gsa/base/error.h"
#include "gsa/models/decoder.h"
#include "gsa/ops/index_loss/index_loss.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

using testing::random_tokens;
using testing::tiny_config;
using testing::tiny_model;

std::optional<at::Tensor> present(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional<at::Tensor>(tensor) : std::nullopt;
}

/// The indexer's loss, as training computes it: on the selection, or over all keys where attention was dense.
std::function<at::Tensor(const LayerTrace&)> index_loss_of(const IndexerConfig& config) {
  const IndexLossOptions options{config.activation, std::nullopt, config.keep_first, config.keep_recent,
                                 config.head_reduction};
  return [options](const LayerTrace& trace) {
    const auto bias = present(trace.head_bias);
    const at::Tensor loss =
        trace.indices.defined()
            ? index_loss_selected(trace.query, trace.key, trace.indices, trace.counts, trace.index_query,
                                  trace.index_key, trace.head_weight, bias, trace.log_scale, options)
            : index_loss_dense(trace.query, trace.key, trace.lse, trace.index_query, trace.index_key,
                               trace.head_weight, bias, trace.log_scale, options);
    return loss.mean();
  };
}

at::Tensor token_loss(Decoder& model, const at::Tensor& tokens, const at::Tensor& hidden) {
  return at::cross_entropy_loss(model.logits(hidden).flatten(0, 1), tokens.flatten());
}

std::map<std::string, at::Tensor> gradients_of(Decoder& model, const at::Tensor& tokens,
                                               ForwardOptions options, bool cross_entropy, bool index_loss) {
  for (auto& [name, parameter] : model.named_parameters()) parameter.mutable_grad() = at::Tensor();
  if (index_loss) options.layer_loss = index_loss_of(*model.config().gsa.indexer);
  const ForwardResult result = model.forward(tokens, options);
  at::Tensor loss;
  if (cross_entropy) loss = token_loss(model, tokens, result.hidden);
  if (index_loss) loss = loss.defined() ? loss + result.layer_loss : result.layer_loss;
  loss.backward();
  std::map<std::string, at::Tensor> gradients;
  for (auto& [name, parameter] : model.named_parameters()) {
    if (parameter.grad().defined()) gradients[name] = parameter.grad().clone();
  }
  return gradients;
}

bool is_zero(const std::map<std::string, at::Tensor>& gradients, const std::string& name) {
  const auto found = gradients.find(name);
  return found == gradients.end() || found->second.eq(0).all().item<bool>();
}

TEST(Training, CrossEntropyNeverReachesTheIndexerNorItsLossTheModel) {
  for (const bool recompute : {false, true}) {
    for (const char* variant : {"gsa", "sparse"}) {
      Decoder model = tiny_model(tiny_config(variant), at::kDouble);
      const at::Tensor tokens = random_tokens(model.config(), 2, 30, 2);
      ForwardOptions options;
      options.checkpoint_activations = recompute;
      const auto from_tokens = gradients_of(model, tokens, options, true, false);
      const auto from_indexer = gradients_of(model, tokens, options, false, true);
      for (const auto& [name, parameter] : model.named_parameters()) {
        const bool indexer = is_indexer_parameter(name);
        EXPECT_EQ(is_zero(from_tokens, name), indexer) << variant << " " << name;
        EXPECT_EQ(is_zero(from_indexer, name), !indexer) << variant << " " << name;
      }
    }
  }
}

TEST(Training, RecomputedActivationsGiveTheSameGradientsBitwise) {
  for (const char* rule : {"fixed", "inverse", "entropy"}) {
    Decoder model = tiny_model(tiny_config("gsa", rule), at::kFloat);
    for (auto& layer : model.layers()) layer.self_attn.budget.unset();
    const at::Tensor tokens = random_tokens(model.config(), 2, 30, 3);
    ForwardOptions options;
    options.update_statistics = true;
    const auto kept = gradients_of(model, tokens, options, true, true);
    model.commit_statistics();
    const float mean = model.named_buffers()[0].second.item<float>();
    for (auto& layer : model.layers()) layer.self_attn.budget.unset();
    options.checkpoint_activations = true;
    const auto recomputed = gradients_of(model, tokens, options, true, true);
    model.commit_statistics();
    ASSERT_EQ(kept.size(), recomputed.size());
    for (const auto& [name, gradient] : kept)
      EXPECT_TRUE(gradient.equal(recomputed.at(name))) << rule << " " << name;
    EXPECT_EQ(mean, model.named_buffers()[0].second.item<float>());
  }
}

TEST(Training, AFrozenModelStillTrainsItsIndexerThroughRecomputation) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kFloat);
  model.train_only(is_indexer_parameter);
  ForwardOptions options;
  options.mode = AttentionMode::dense;
  options.need_lse = true;
  const at::Tensor tokens = random_tokens(model.config(), 1, 20, 3);
  const auto kept = gradients_of(model, tokens, options, false, true);
  options.checkpoint_activations = true;
  const auto recomputed = gradients_of(model, tokens, options, false, true);
  EXPECT_FALSE(kept.empty());
  for (const auto& [name, gradient] : kept) EXPECT_TRUE(gradient.equal(recomputed.at(name))) << name;
}

TEST(Training, TheRunningMeanMovesAfterTheStepThatUsedIt) {
  Decoder model(tiny_config("gsa", "inverse"));
  model.initialize(1);
  const at::Tensor tokens = random_tokens(model.config(), 2, 30, 4);
  EXPECT_THROW(model.forward(tokens), Error);  // evaluation without a running mean

  at::Tensor statistic, counts;
  ForwardOptions options;
  options.update_statistics = true;
  options.observer = [&](const LayerTrace& trace) {
    if (trace.layer == 0) statistic = trace.statistic, counts = trace.counts;
  };
  const auto mean = [&] { return model.named_buffers()[0].second.item<double>(); };
  model.forward(tokens, options);
  EXPECT_TRUE(std::isnan(mean()));
  EXPECT_EQ(counts.slice(1, 8).min().item<int>(), 8);  // the first step gives everyone k_base
  EXPECT_EQ(counts.max().item<int>(), 8);
  model.forward(tokens, options);  // a second micro-batch of the same step
  model.commit_statistics();
  const double first = statistic.mean().item<double>();
  EXPECT_NEAR(mean(), first, 1e-6 * first);

  const at::Tensor others = random_tokens(model.config(), 2, 30, 5);
  model.forward(others, options);
  EXPECT_NEAR(mean(), first, 1e-6 * first);
  EXPECT_GT(counts.max().item<int>(), counts.slice(1, 12).min().item<int>());  // now the budget adapts
  model.commit_statistics();
  EXPECT_NEAR(mean(), first + 0.01 * (statistic.mean().item<double>() - first), 1e-6 * first);
  model.commit_statistics();  // nothing noted, nothing moves
  model.forward(others, options);
  model.discard_statistics();
  model.commit_statistics();
  EXPECT_NEAR(mean(), first + 0.01 * (statistic.mean().item<double>() - first), 1e-6 * first);
}

TEST(Training, ChangingTheRuleKeepsAMeanOfTheSameKind) {
  Decoder model = tiny_model(tiny_config("gsa", "fixed"), at::kFloat);
  const at::Tensor tokens = random_tokens(model.config(), 1, 30, 4);
  BudgetConfig budget = model.config().gsa.budget;
  budget.rule = "inverse";
  model.set_budget(budget);
  EXPECT_NO_THROW(model.forward(tokens));
  budget.rule = "entropy";
  model.set_budget(budget);
  EXPECT_THROW(model.forward(tokens), Error);
}

TEST(Training, TracesShowEveryLayerOnce) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kFloat);
  const at::Tensor tokens = random_tokens(model.config(), 2, 20, 4);
  std::vector<int64_t> layers;
  ForwardOptions options;
  options.checkpoint_activations = true;
  options.observer = [&](const LayerTrace& trace) {
    layers.push_back(trace.layer);
    EXPECT_EQ(trace.residual.sizes(), (std::vector<int64_t>{2, 20, 32}));
    EXPECT_EQ(trace.query.sizes(), (std::vector<int64_t>{2, 20, 4, 8}));
    EXPECT_EQ(trace.key.sizes(), (std::vector<int64_t>{2, 20, 2, 8}));
    EXPECT_EQ(trace.lse.sizes(), (std::vector<int64_t>{2, 20, 4}));
    EXPECT_EQ(trace.index_query.sizes(), (std::vector<int64_t>{2, 20, 2, 8}));
    EXPECT_EQ(trace.indices.size(1), 20);
    EXPECT_FALSE(trace.query.requires_grad() || trace.value.requires_grad() ||
                 trace.residual.requires_grad());
  };
  token_loss(model, tokens, model.forward(tokens, options).hidden).backward();
  EXPECT_EQ(layers, (std::vector<int64_t>{0, 1}));
}

TEST(Training, DenseTracesCarryTheLogSumExp) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kDouble);
  ForwardOptions options;
  options.mode = AttentionMode::dense;
  options.need_lse = true;
  options.observer = [&](const LayerTrace& trace) {
    EXPECT_FALSE(trace.indices.defined());
    const at::Tensor key = trace.key.repeat_interleave(2, 2);
    const at::Tensor logits =
        at::matmul(trace.query.transpose(1, 2), key.permute({0, 2, 3, 1})) / std::sqrt(8.0);
    const at::Tensor last = logits.select(2, 19).logsumexp(-1);
    EXPECT_LT((last - trace.lse.select(1, 19)).abs().max().item<double>(), 1e-12);
    EXPECT_NEAR(logits[0][0][0][0].item<double>(), trace.lse[0][0][0].item<double>(), 1e-12);
  };
  model.forward(random_tokens(model.config(), 1, 20, 4), options);
}

TEST(Training, Bf16ComputeOnFp32ParametersComesClose) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kFloat);
  const at::Tensor tokens = random_tokens(model.config(), 1, 20, 4);
  ForwardOptions options;
  options.mode = AttentionMode::dense;
  const at::Tensor exact = model.forward(tokens, options).hidden;
  options.compute_dtype = at::kBFloat16;
  const at::Tensor hidden = model.forward(tokens, options).hidden;
  EXPECT_EQ(hidden.scalar_type(), at::kBFloat16);
  EXPECT_LT((hidden.to(at::kFloat) - exact).abs().mean().item<double>(),
            0.05 * exact.abs().mean().item<double>());
  token_loss(model, tokens, hidden).backward();
  EXPECT_EQ(model.embedding().grad().scalar_type(), at::kFloat);
}

}  // namespace
}  // namespace gsa
