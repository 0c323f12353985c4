#include "gsa/train/stage_step.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <map>

#include "gsa/testing/random.h"

namespace gsa {
namespace {

constexpr int64_t kLength = 80;

RunConfig tiny_run() {
  RunConfig config;
  config.model.vocab_size = 61;
  config.model.hidden_size = 32;
  config.model.intermediate_size = 48;
  config.model.num_hidden_layers = 2;
  config.model.num_attention_heads = 4;
  config.model.num_key_value_heads = 2;
  auto& indexer = *config.model.gsa.indexer;
  indexer.index_heads = 2;
  indexer.index_dim = 16;
  indexer.index_rotary_dim = 8;
  indexer.keep_first = 2;
  indexer.keep_recent = 4;
  config.model.gsa.budget = {.rule = "fixed", .k_base = 12, .k_min = 8, .k_max = 16};
  return config;
}

at::Tensor tokens(int64_t batch) {
  return at::randint(0, 61, {batch, kLength + 1}, at::kLong);
}

struct Outcome {
  StepLosses losses;
  std::map<std::string, at::Tensor> gradients;
};

/// Losses and gradients of one step from the same weights.
Outcome step(const RunConfig& config, const StageConfig& stage, const std::vector<at::Tensor>& micro_batches,
             double log_scale = 2.3) {
  Decoder model(config.model);
  model.initialize(7);
  for (auto& layer : model.layers()) {
    if (layer.self_attn.indexer) layer.self_attn.indexer->log_scale.detach().fill_(log_scale);
  }
  StageStep stage_step(model, stage, config);
  for (const auto& batch : micro_batches) stage_step.accumulate(batch, 5, true);
  Outcome outcome;
  outcome.losses = stage_step.take_losses();
  for (const auto& [name, parameter] : model.named_parameters()) outcome.gradients[name] = parameter.grad();
  return outcome;
}

bool is_zero(const at::Tensor& gradient) {
  return !gradient.defined() || gradient.count_nonzero().item<int64_t>() == 0;
}

double difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>() / (1e-12 + b.abs().max().item<double>());
}

TEST(StageStep, TheTwoLossesOfTheSparseStageNeverMeet) {
  const RunConfig config = tiny_run();
  const auto batch = tokens(2);
  const auto without = step(config, {.kind = "sparse", .index_loss_weight = 0.0}, {batch});
  const auto with = step(config, {.kind = "sparse", .index_loss_weight = 1.0}, {batch});
  for (const auto& [name, gradient] : with.gradients) {
    if (is_indexer_parameter(name)) {
      EXPECT_TRUE(is_zero(without.gradients.at(name))) << name;  // cross entropy alone: exactly nothing
      EXPECT_FALSE(is_zero(gradient)) << name;
    } else {
      EXPECT_TRUE(at::equal(gradient, without.gradients.at(name))) << name;  // KL adds exactly nothing
      EXPECT_FALSE(is_zero(gradient)) << name;
    }
  }
  EXPECT_EQ(with.losses.cross_entropy, without.losses.cross_entropy);
  EXPECT_NEAR(with.losses.loss, *with.losses.cross_entropy + 2 * *with.losses.index_kl, 1e-5);
}

TEST(StageStep, DenseAndWarmUpTrainTheirOwnParts) {
  const RunConfig config = tiny_run();
  const auto dense = step(config, {.kind = "dense"}, {tokens(2)});
  const auto warmup = step(config, {.kind = "indexer_warmup"}, {tokens(2)});
  EXPECT_FALSE(dense.losses.index_kl.has_value());
  EXPECT_FALSE(warmup.losses.cross_entropy.has_value());
  for (const auto& [name, gradient] : dense.gradients) {
    EXPECT_EQ(gradient.defined(), !is_indexer_parameter(name)) << name;
  }
  for (const auto& [name, gradient] : warmup.gradients) {
    EXPECT_EQ(gradient.defined(), is_indexer_parameter(name)) << name;
    if (gradient.defined()) {
      EXPECT_FALSE(is_zero(gradient)) << name;
    }
  }
}

TEST(StageStep, MicroBatchesAddUpToTheBatch) {
  const RunConfig config = tiny_run();
  const auto batch = tokens(4);
  for (const char* kind : {"dense", "indexer_warmup", "sparse"}) {
    const auto whole = step(config, {.kind = kind}, {batch});
    const auto parts =
        step(config, {.kind = kind, .accumulation = 2}, {batch.narrow(0, 0, 2), batch.narrow(0, 2, 2)});
    EXPECT_NEAR(whole.losses.loss, parts.losses.loss, 1e-4);
    for (const auto& [name, gradient] : whole.gradients) {
      if (gradient.defined()) {
        EXPECT_LT(difference(parts.gradients.at(name), gradient), 1e-3) << kind << " " << name;
      }
    }
  }
}

TEST(StageStep, ActivationCheckpointingChangesNothing) {
  RunConfig config = tiny_run();
  const auto batch = tokens(2);
  for (const char* kind : {"dense", "indexer_warmup", "sparse"}) {
    config.checkpoint_activations = false;
    const auto kept = step(config, {.kind = kind}, {batch});
    config.checkpoint_activations = true;
    const auto recomputed = step(config, {.kind = kind}, {batch});
    EXPECT_EQ(kept.losses.loss, recomputed.losses.loss) << kind;
    EXPECT_EQ(kept.losses.index_kl, recomputed.losses.index_kl) << kind;
    for (const auto& [name, gradient] : kept.gradients) {
      if (gradient.defined()) {
        EXPECT_TRUE(at::equal(gradient, recomputed.gradients.at(name))) << kind << " " << name;
      }
    }
  }
}

TEST(StageStep, AUniformIndexerHasTheUniformLoss) {
  for (const char* kind : {"indexer_warmup", "sparse"}) {
    const auto outcome = step(tiny_run(), {.kind = kind}, {tokens(1)}, /*log_scale=*/-50.0);
    EXPECT_NEAR(*outcome.losses.index_kl, *outcome.losses.uniform_kl, 1e-6);
    EXPECT_GT(*outcome.losses.uniform_kl, 0.0);
  }
}

TEST(StageStep, SharedRowsAndSampledQueriesTrainTheIndexer) {
  RunConfig config = tiny_run();
  for (int64_t query_tile : {1, 16}) {
    config.model.gsa.indexer->query_tile = query_tile;
    for (const char* kind : {"indexer_warmup", "sparse"}) {
      const auto outcome = step(config, {.kind = kind, .index_queries = 64}, {tokens(2)});
      EXPECT_GT(*outcome.losses.index_kl, 0.0);
      for (const auto& [name, gradient] : outcome.gradients) {
        if (is_indexer_parameter(name)) {
          EXPECT_FALSE(is_zero(gradient)) << kind << " " << name;
        }
      }
    }
  }
}

TEST(StageStep, Bf16StaysCloseToFp32) {
  RunConfig config = tiny_run();
  const auto batch = tokens(2);
  for (const char* kind : {"dense", "indexer_warmup", "sparse"}) {
    config.dtype = "float32";
    const auto exact = step(config, {.kind = kind}, {batch});
    config.dtype = "bfloat16";
    const auto low = step(config, {.kind = kind}, {batch});
    EXPECT_NEAR(low.losses.loss, exact.losses.loss, 0.02 * exact.losses.loss) << kind;
    for (const auto& [name, gradient] : low.gradients) {
      if (gradient.defined()) {
        EXPECT_EQ(gradient.scalar_type(), at::kFloat) << name;
        // It did compute in bf16. One number, as the loss, may be the same by chance; a matrix is not.
        if (gradient.dim() == 2) {
          EXPECT_FALSE(at::equal(gradient, exact.gradients.at(name))) << kind << " " << name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace gsa
