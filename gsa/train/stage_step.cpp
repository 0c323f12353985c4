#include "gsa/train/stage_step.h"

#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include "gsa/train/cross_entropy.h"
#include "gsa/train/index_kl.h"

namespace gsa {
namespace {

void add(at::Tensor& sum, const at::Tensor& value) {
  const at::Tensor detached = value.detach().to(at::kDouble);
  sum = sum.defined() ? sum + detached : detached;
}

std::optional<double> take(at::Tensor& sum, double divisor) {
  if (!sum.defined()) return std::nullopt;
  const double value = sum.item<double>() / divisor;
  sum = at::Tensor();
  return value;
}

/// Queries drawn together: neighbours, and never a part of a shared row.
int64_t run_length(const IndexerConfig& config) {
  return std::max<int64_t>(64, config.query_tile);
}

}  // namespace

StageStep::StageStep(Decoder& model, const StageConfig& stage, const RunConfig& config)
    : model_(model), stage_(stage), checkpoint_activations_(config.checkpoint_activations) {
  if (config.dtype == "bfloat16") compute_dtype_ = at::kBFloat16;
  // A frozen model keeps nothing for backward, and its activations carry no gradient that would start a
  // recomputation.
  if (stage.kind == "indexer_warmup") checkpoint_activations_ = false;
  if (stage.kind == "dense") {
    model.train_only([](const std::string& name) { return !is_indexer_parameter(name); });
  } else if (stage.kind == "indexer_warmup") {
    model.train_only([](const std::string& name) { return is_indexer_parameter(name); });
  } else {
    model.train_only([](const std::string&) { return true; });
  }
  head_weight_ = model.embedding();
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (name == "lm_head.weight") head_weight_ = parameter;
  }
}

NamedTensors StageStep::trained_parameters() const {
  NamedTensors trained = model_.named_parameters();
  std::erase_if(trained, [](const auto& named) { return !named.second.requires_grad(); });
  return trained;
}

at::Tensor StageStep::layer_loss(const LayerTrace& trace, uint64_t seed, bool measure) {
  const IndexerConfig& config = *model_.config().gsa.indexer;
  const auto runs = draw_queries(stage_.index_queries, trace.query.size(1), run_length(config),
                                 seed + static_cast<uint64_t>(trace.layer));
  at::Tensor loss = index_kl(trace, config, runs);
  // With activation checkpointing the layer runs twice, the first time without gradients: count that one.
  if (checkpoint_activations_ && c10::GradMode::is_enabled()) return loss;
  add(index_kl_, loss);
  if (measure) add(uniform_kl_, uniform_index_kl(trace, config, runs));
  if (trace.counts.defined()) add(selected_keys_, trace.counts.to(at::kDouble).mean());
  return loss;
}

void StageStep::accumulate(const at::Tensor& tokens, uint64_t seed, bool measure) {
  const int64_t length = tokens.size(1) - 1;
  const bool warmup = stage_.kind == "indexer_warmup", sparse = stage_.kind == "sparse";
  ForwardOptions options;
  options.mode = sparse ? AttentionMode::sparse : AttentionMode::dense;
  options.compute_dtype = compute_dtype_;
  options.checkpoint_activations = checkpoint_activations_;
  options.need_lse = warmup;
  options.update_statistics = sparse;
  if (warmup || sparse) {
    options.layer_loss = [&](const LayerTrace& trace) { return layer_loss(trace, seed, measure); };
  }
  const ForwardResult result = model_.forward(tokens.narrow(1, 0, length), options);
  at::Tensor loss;
  if (!warmup) {
    const at::Tensor targets = tokens.narrow(1, 1, length).reshape({-1});
    loss = chunked_cross_entropy(result.hidden.reshape({-1, result.hidden.size(2)}), head_weight_, targets,
                                 compute_dtype_);
    add(cross_entropy_, loss);
  }
  if (result.layer_loss.defined()) {
    loss = warmup ? result.layer_loss : loss + stage_.index_loss_weight * result.layer_loss;
  }
  add(loss_, loss);
  torch::autograd::backward({loss / static_cast<double>(stage_.accumulation)});
  ++micro_batches_;
}

StepLosses StageStep::take_losses() {
  const double batches = static_cast<double>(micro_batches_);
  const double layers = batches * static_cast<double>(model_.layers().size());
  StepLosses losses;
  losses.loss = take(loss_, batches).value_or(0.0);
  losses.cross_entropy = take(cross_entropy_, batches);
  losses.index_kl = take(index_kl_, layers);
  losses.uniform_kl = take(uniform_kl_, layers);
  losses.selected_keys = take(selected_keys_, layers);
  micro_batches_ = 0;
  return losses;
}

}  // namespace gsa
