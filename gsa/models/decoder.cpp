#include "gsa/models/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rms_norm.h>
#include <ATen/ops/silu.h>

#include "gsa/base/error.h"
#include "gsa/models/activation_checkpoint.h"

namespace gsa {
namespace {

AttentionShape attention_shape(const DecoderConfig& config) {
  return {config.hidden_size,         config.num_attention_heads, config.num_key_value_heads,
          config.resolved_head_dim(), config.attention_bias,      config.attention_bias};
}

RotaryConfig rotary_config(const DecoderConfig& config, int64_t dim) {
  RotaryConfig rotary{dim, config.rope_theta};
  if (config.rope_scaling) {
    rotary.type = config.rope_scaling->rope_type;
    rotary.factor = config.rope_scaling->factor;
    rotary.low_freq_factor = config.rope_scaling->low_freq_factor;
    rotary.high_freq_factor = config.rope_scaling->high_freq_factor;
    rotary.original_max_position_embeddings = config.rope_scaling->original_max_position_embeddings;
  }
  return rotary;
}

// What the variance-reading rules remember is one thing, what the others remember another.
std::string statistic_of(const std::string& rule) {
  return rule == "fixed" || rule == "inverse" || rule == "as_printed" ? "variance" : rule;
}

void check_tokens(const at::Tensor& tokens) {
  TORCH_CHECK_VALUE(tokens.dim() == 2, "decoder: tokens expected shape [B,T], got ", tokens.sizes());
  TORCH_CHECK_TYPE(tokens.scalar_type() == at::kLong, "decoder: tokens expected int64, got ",
                   tokens.scalar_type());
}

}  // namespace

at::Tensor RmsNorm::operator()(const at::Tensor& x) const {
  return at::rms_norm(x, {weight.size(0)}, weight.to(x.scalar_type()), epsilon);
}

at::Tensor Mlp::operator()(const at::Tensor& x) const {
  return down_proj(at::silu(gate_proj(x)) * up_proj(x));
}

DecoderLayer::DecoderLayer(const DecoderConfig& config)
    : input_layernorm{shape_only({config.hidden_size}), config.rms_norm_eps},
      post_attention_layernorm{shape_only({config.hidden_size}), config.rms_norm_eps},
      self_attn(attention_shape(config), config.gsa),
      mlp{Linear(config.hidden_size, config.intermediate_size, config.mlp_bias),
          Linear(config.hidden_size, config.intermediate_size, config.mlp_bias),
          Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)} {}

Decoder::Decoder(const DecoderConfig& config)
    : config_(config),
      embed_tokens_(shape_only({config.vocab_size, config.hidden_size})),
      norm_{shape_only({config.hidden_size}), config.rms_norm_eps},
      frequencies_(rotary_frequencies(rotary_config(config, config.resolved_head_dim()))) {
  check_config(config);
  if (!config.tie_word_embeddings) lm_head_ = Linear(config.hidden_size, config.vocab_size, false);
  if (config.gsa.indexer) {
    index_frequencies_ = rotary_frequencies(rotary_config(config, config.gsa.indexer->index_rotary_dim));
  }
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers_.emplace_back(config);
}

ForwardResult Decoder::forward(const at::Tensor& tokens, const ForwardOptions& options) {
  check_tokens(tokens);
  TORCH_CHECK_VALUE(!embed_tokens_.is_meta(),
                    "decoder: expected loaded or initialised parameters, got shapes only");
  const at::AutoGradMode gradients(at::GradMode::is_enabled() && options.cache == nullptr);
  const int64_t begin = options.cache != nullptr ? options.cache->length() : 0;
  const auto table_dtype = dtype() == at::kDouble ? at::kDouble : at::kFloat;
  AttentionContext context;
  context.mode = options.mode;
  context.rotary = rotary_table(frequencies_, begin, tokens.size(1), table_dtype);
  context.index_rotary = rotary_table(index_frequencies_, begin, tokens.size(1), table_dtype);
  context.selection = options.selection;
  context.need_lse = options.need_lse;
  context.update_statistics = options.update_statistics;
  context.query_chunk = options.query_chunk;

  at::Tensor x = at::embedding(embed_tokens_, tokens);
  at::Tensor layer_loss;
  for (size_t i = 0; i < layers_.size(); ++i) {
    context.layer = static_cast<int64_t>(i);
    context.cache = options.cache != nullptr ? &options.cache->layer(context.layer) : nullptr;
    const auto run = [this, i, context, options](const at::Tensor& input, bool recomputing) {
      return run_layer(layers_[i], input, context, options, recomputing);
    };
    const auto outputs = options.checkpoint_activations ? checkpoint_layer(run, x) : run(x, false);
    x = outputs[0];
    if (outputs.size() > 1) layer_loss = layer_loss.defined() ? layer_loss + outputs[1] : outputs[1];
  }
  return {norm_(x).to(options.compute_dtype.value_or(x.scalar_type())), layer_loss};
}

std::vector<at::Tensor> Decoder::run_layer(DecoderLayer& layer, const at::Tensor& x, AttentionContext context,
                                           const ForwardOptions& options, bool recomputing) {
  const auto compute_dtype = options.compute_dtype.value_or(x.scalar_type());
  const bool observes = options.observer && !recomputing;
  LayerTrace trace;
  trace.layer = context.layer;
  context.recomputing = recomputing;
  if (observes || options.layer_loss) context.trace = &trace;

  const at::Tensor attended = x + layer.self_attn(layer.input_layernorm(x).to(compute_dtype), context);
  const at::Tensor out = attended + layer.mlp(layer.post_attention_layernorm(attended).to(compute_dtype));

  trace.residual = out.detach();
  if (observes) options.observer(trace);
  if (!options.layer_loss) return {out};
  return {out, options.layer_loss(trace)};
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  const at::Tensor& weight = lm_head_.weight.defined() ? lm_head_.weight : embed_tokens_;
  return at::linear(hidden, weight.to(hidden.scalar_type()));
}

NamedTensors Decoder::named_parameters() {
  NamedTensors all;
  parameters([&](const std::string& name, at::Tensor& tensor) { all.emplace_back(name, tensor); });
  return all;
}

NamedTensors Decoder::named_buffers() {
  NamedTensors all;
  buffers([&](const std::string& name, at::Tensor& tensor) { all.emplace_back(name, tensor); });
  return all;
}

void Decoder::visit_tensors(const std::function<void(const std::string&, at::Tensor&)>& visit) {
  parameters(visit);
  buffers(visit);
  if (embed_tokens_.is_meta()) return;
  frequencies_ = frequencies_.to(device());
  if (index_frequencies_.defined()) index_frequencies_ = index_frequencies_.to(device());
}

void Decoder::train_only(const std::function<bool(const std::string&)>& trains) {
  parameters([&](const std::string& name, at::Tensor& tensor) { tensor.requires_grad_(trains(name)); });
}

void Decoder::commit_statistics() {
  for (auto& layer : layers_) layer.self_attn.budget.commit();
}

void Decoder::discard_statistics() {
  for (auto& layer : layers_) layer.self_attn.budget.discard();
}

void Decoder::set_budget(const BudgetConfig& budget) {
  GsaConfig changed = config_.gsa;
  changed.budget = budget;
  check_config(changed);
  const bool other_statistic = statistic_of(budget.rule) != statistic_of(config_.gsa.budget.rule);
  config_.gsa = changed;
  for (auto& layer : layers_) {
    layer.self_attn.config.budget = budget;
    layer.self_attn.budget.config = budget;
    if (other_statistic) layer.self_attn.budget.unset();
  }
}

void Decoder::set_indexer_options(const IndexerConfig& indexer) {
  if (!config_.gsa.indexer) fail("indexer: this model has none");
  const IndexerConfig& old = *config_.gsa.indexer;
  if (indexer.index_heads != old.index_heads || indexer.index_dim != old.index_dim ||
      indexer.index_rotary_dim != old.index_rotary_dim || indexer.activation != old.activation) {
    fail("indexer: index_heads, index_dim, index_rotary_dim and activation belong to the trained parameters");
  }
  GsaConfig changed = config_.gsa;
  changed.indexer = indexer;
  check_config(changed);
  config_.gsa = changed;
  for (auto& layer : layers_) {
    layer.self_attn.config.indexer = indexer;
    layer.self_attn.indexer->config = indexer;
  }
}

bool is_indexer_parameter(const std::string& name) {
  return name.find(".indexer.") != std::string::npos;
}

std::string parameter_part(const std::string& name) {
  const auto has = [&](const char* piece) { return name.find(piece) != std::string::npos; };
  if (has("embed_tokens")) return "embedding";
  if (has("lm_head")) return "head";
  if (has(".indexer.")) return "indexer";
  if (has("self_attn.value_gate") || has("self_attn.output_gate")) return "gates";
  if (has(".self_attn.")) return "attention";
  if (has(".mlp.")) return "mlp";
  return "norms";
}

}  // namespace gsa
