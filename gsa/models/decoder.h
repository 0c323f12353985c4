#pragma once
// The decoder: embeddings, layers of gated sparse attention and SwiGLU, final norm, output head. Parameter
// names are Hugging Face Llama's plus self_attn.{value_gate,output_gate,indexer.*}.

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "gsa/attention/gated_sparse_attention.h"
#include "gsa/attention/kv_cache.h"
#include "gsa/attention/trace.h"
#include "gsa/io/safetensors.h"
#include "gsa/models/config.h"

namespace gsa {

/// What one forward is asked to do.
struct ForwardOptions {
  AttentionMode mode =
      AttentionMode::sparse;    // a model without indexer attends densely unless `selection` says else
  KvCache* cache = nullptr;     // tokens continue the cached ones; no gradients
  SelectionOverride selection;  // evaluation's controls

  /// Called once per layer, in order, with what the layer did. Never called again when activations are
  /// recomputed.
  std::function<void(const LayerTrace&)> observer;
  /// A scalar loss per layer; the sum over layers comes back as ForwardResult::layer_loss, with gradients for
  /// the indexer.
  std::function<at::Tensor(const LayerTrace&)> layer_loss;
  bool need_lse = false;  // dense mode: traces carry lse

  bool update_statistics = false;  // note the budget statistics; commit_statistics() after the optimizer step
  bool checkpoint_activations = false;  // keep only each layer's input for backward and recompute the rest
  std::optional<at::ScalarType>
      compute_dtype;  // of linear maps and attention (bf16 training on fp32 parameters)
  // Queries at a time in long sparse prefill (no gradient, no trace); 0: as suits the device.
  int64_t query_chunk = 0;
};

struct ForwardResult {
  at::Tensor hidden;      // [B,T,D], final norm applied
  at::Tensor layer_loss;  // scalar fp32; undefined without ForwardOptions::layer_loss
};

struct RmsNorm {
  at::Tensor weight;  // [D]
  double epsilon = 1e-5;
  at::Tensor operator()(const at::Tensor& x) const;
};

/// SwiGLU: down(silu(gate(x)) * up(x)).
struct Mlp {
  Linear gate_proj, up_proj, down_proj;
  at::Tensor operator()(const at::Tensor& x) const;
};

struct DecoderLayer {
  explicit DecoderLayer(const DecoderConfig& config);

  template <class Visit>
  void parameters(const std::string& prefix, Visit&& visit) {
    visit(prefix + ".input_layernorm.weight", input_layernorm.weight);
    self_attn.parameters(prefix + ".self_attn", visit);
    visit(prefix + ".post_attention_layernorm.weight", post_attention_layernorm.weight);
    mlp.gate_proj.parameters(prefix + ".mlp.gate_proj", visit);
    mlp.up_proj.parameters(prefix + ".mlp.up_proj", visit);
    mlp.down_proj.parameters(prefix + ".mlp.down_proj", visit);
  }

  RmsNorm input_layernorm, post_attention_layernorm;
  GatedSparseAttention self_attn;
  Mlp mlp;
};

class Decoder {
 public:
  /// Builds shapes only (meta device): count parameters, then initialize() or load_checkpoint()
  /// (models/checkpoint.h).
  explicit Decoder(const DecoderConfig& config);

  /// Draws all parameters from `seed`, fp32 on the CPU (the same numbers on every machine), then moves them.
  /// All require gradients.
  void initialize(uint64_t seed, at::Device device = at::kCPU, at::ScalarType dtype = at::kFloat);

  /// Draws gates (as the configuration says) and indexers only; the rest keeps its values. For converted
  /// models.
  void initialize_additions(uint64_t seed);

  /// tokens int64 [B,T].
  ForwardResult forward(const at::Tensor& tokens, const ForwardOptions& options = {});

  /// hidden [..., D] -> logits [..., vocab_size], in hidden's dtype.
  at::Tensor logits(const at::Tensor& hidden) const;

  /// All parameters in the checkpoint's order; lm_head is absent when tied.
  NamedTensors named_parameters();
  /// What the checkpoint holds beside parameters: each indexer's running mean.
  NamedTensors named_buffers();

  /// visit(name, at::Tensor&) over parameters, then buffers: replace tensors (loading, moving).
  void visit_tensors(const std::function<void(const std::string&, at::Tensor&)>& visit);

  /// Sets requires_grad of every parameter to what the predicate says of its name.
  void train_only(const std::function<bool(const std::string&)>& trains);

  /// After an optimizer step: moves every layer's running mean by what the step's forwards noted.
  void commit_statistics();
  void discard_statistics();

  /// Replaces the budget rule (evaluation of other budgets). A rule that reads another statistic unsets the
  /// running means: run a few forwards with update_statistics and commit them.
  void set_budget(const BudgetConfig& budget);
  /// Changes kept tokens, query tile, the keys' dtype and the like; sizes and activation kind must stay
  /// (Error otherwise).
  void set_indexer_options(const IndexerConfig& indexer);

  const DecoderConfig& config() const { return config_; }
  std::vector<DecoderLayer>& layers() { return layers_; }
  const at::Tensor& embedding() const { return embed_tokens_; }
  at::Device device() const { return embed_tokens_.device(); }
  at::ScalarType dtype() const { return embed_tokens_.scalar_type(); }

 private:
  template <class Visit>
  void parameters(Visit&& visit) {
    visit("model.embed_tokens.weight", embed_tokens_);
    for (size_t i = 0; i < layers_.size(); ++i)
      layers_[i].parameters("model.layers." + std::to_string(i), visit);
    visit("model.norm.weight", norm_.weight);
    if (lm_head_.weight.defined()) lm_head_.parameters("lm_head", visit);
  }
  template <class Visit>
  void buffers(Visit&& visit) {
    for (size_t i = 0; i < layers_.size(); ++i) {
      layers_[i].self_attn.buffers("model.layers." + std::to_string(i) + ".self_attn", visit);
    }
  }

  std::vector<at::Tensor> run_layer(DecoderLayer& layer, const at::Tensor& x, AttentionContext context,
                                    const ForwardOptions& options, bool recomputing);

  DecoderConfig config_;
  at::Tensor embed_tokens_;  // [V,D]
  std::vector<DecoderLayer> layers_;
  RmsNorm norm_;
  Linear lm_head_;  // undefined weight when tied
  at::Tensor frequencies_, index_frequencies_;
};

/// True for parameters that the indexer stages train (".indexer." in the name).
bool is_indexer_parameter(const std::string& name);

/// The part of the model a parameter belongs to: embedding, attention, gates, indexer, mlp, norms or head.
std::string parameter_part(const std::string& name);

}  // namespace gsa
