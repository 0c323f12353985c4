#pragma once
// A decoder's configuration: Hugging Face's Llama names plus a nested "gsa". Torch-free.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "gsa/attention/config.h"
#include "gsa/base/json.h"

namespace gsa {

/// Scaling of the rotary frequencies, as Llama 3 checkpoints carry it. rope_type: default | linear | llama3.
struct RopeScalingConfig {
  std::string rope_type = "default";
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("rope_type", rope_type);
    field("factor", factor);
    field("low_freq_factor", low_freq_factor);
    field("high_freq_factor", high_freq_factor);
    field("original_max_position_embeddings", original_max_position_embeddings);
  }
};

struct DecoderConfig {
  int64_t vocab_size = 32000;
  int64_t hidden_size = 2048;
  int64_t intermediate_size = 5632;
  int64_t num_hidden_layers = 24;
  int64_t num_attention_heads = 16;
  int64_t num_key_value_heads = 4;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  int64_t max_position_embeddings = 131072;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  std::optional<RopeScalingConfig> rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  double initializer_range = 0.02;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> eos_token_id;
  std::vector<int64_t> other_eos_token_ids;  // Llama 3 ends a turn and a text with different tokens
  std::string tokenizer_hash;                // hash of the tokenizer.json it was trained with; empty: unknown
  GsaConfig gsa;

  template <class Visitor>
  void fields(Visitor&& field) {
    field("vocab_size", vocab_size);
    field("hidden_size", hidden_size);
    field("intermediate_size", intermediate_size);
    field("num_hidden_layers", num_hidden_layers);
    field("num_attention_heads", num_attention_heads);
    field("num_key_value_heads", num_key_value_heads);
    field("head_dim", head_dim);
    field("max_position_embeddings", max_position_embeddings);
    field("rms_norm_eps", rms_norm_eps);
    field("rope_theta", rope_theta);
    field("rope_scaling", rope_scaling);
    field("tie_word_embeddings", tie_word_embeddings);
    field("attention_bias", attention_bias);
    field("mlp_bias", mlp_bias);
    field("initializer_range", initializer_range);
    field("bos_token_id", bos_token_id);
    field("eos_token_id", eos_token_id);
    field("other_eos_token_ids", other_eos_token_ids);
    field("tokenizer_hash", tokenizer_hash);
    field("gsa", gsa);
  }
  int64_t resolved_head_dim() const { return head_dim > 0 ? head_dim : hidden_size / num_attention_heads; }
};

/// Checks values and combinations; throws Error naming the field.
void check_config(const DecoderConfig& config);

/// Reads one of configs/models (strict: an unknown key is an error) and checks it.
DecoderConfig read_model_config(const std::filesystem::path& path);

/// From a Hugging Face config.json: model_type gated_sparse_attention, or llama (then variant `dense`). Keys
/// without meaning for the computation are ignored; an architecture or option that would compute something
/// else is an Error.
DecoderConfig decoder_config_from_hf(const Json& json, const std::string& source);

/// As config.json of a checkpoint (model_type gated_sparse_attention).
Json decoder_config_to_hf(const DecoderConfig& config, const std::string& dtype);

}  // namespace gsa
