#include "gsa/models/config.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gsa/base/config.h"
#include "gsa/base/error.h"

namespace gsa {
namespace {

void check_positive(const char* field, int64_t value) {
  if (value < 1) fail(field, ": expected a positive number, got ", value);
}

void check_rope(const DecoderConfig& config) {
  if (!(config.rope_theta > 0)) fail("rope_theta: expected a positive number, got ", config.rope_theta);
  if (!config.rope_scaling) return;
  const auto& scaling = *config.rope_scaling;
  if (scaling.rope_type != "default" && scaling.rope_type != "linear" && scaling.rope_type != "llama3") {
    fail("rope_scaling.rope_type: expected default | linear | llama3, got '", scaling.rope_type, "'");
  }
  if (!(scaling.factor >= 1.0)) fail("rope_scaling.factor: expected at least 1, got ", scaling.factor);
  if (scaling.rope_type == "llama3" && !(scaling.high_freq_factor > scaling.low_freq_factor)) {
    fail("rope_scaling.high_freq_factor: expected more than low_freq_factor ", scaling.low_freq_factor,
         ", got ", scaling.high_freq_factor);
  }
}

/// A copy of `json` with only the keys that `config` knows.
template <class Config>
Json known_keys(const Json& json, Config& config) {
  std::vector<std::string> names;
  config.fields(detail::CollectNames{names});
  Json kept = Json::object();
  for (const auto& name : names) {
    if (auto found = json.find(name); found != json.end() && !found->is_null()) kept[name] = *found;
  }
  return kept;
}

// Hugging Face spells rotary scaling in three ways: rope_scaling with `rope_type` or (older) `type`, and
// rope_parameters, which also holds rope_theta.
void read_rope(const Json& json, DecoderConfig& config, const std::string& source) {
  Json scaling;
  if (auto found = json.find("rope_scaling"); found != json.end() && found->is_object()) scaling = *found;
  if (auto found = json.find("rope_parameters"); found != json.end() && found->is_object()) scaling = *found;
  config.rope_scaling.reset();
  if (scaling.is_null()) return;
  if (scaling.contains("rope_theta") && scaling["rope_theta"].is_number())
    config.rope_theta = scaling["rope_theta"];
  if (scaling.contains("type") && !scaling.contains("rope_type")) scaling["rope_type"] = scaling["type"];
  RopeScalingConfig read;
  config_from_json(known_keys(scaling, read), read, source + ": rope_scaling");
  if (read.rope_type != "default") config.rope_scaling = read;
}

void expect(const Json& json, const std::string& source, const char* key, const Json& expected) {
  if (auto found = json.find(key); found != json.end() && !found->is_null() && *found != expected) {
    fail(source, ": ", key, ": expected ", expected.dump(), ", got ", found->dump());
  }
}

void read_token_id(const Json& json, const char* key, std::optional<int64_t>& id) {
  if (const auto found = json.find(key); found != json.end() && found->is_number_integer())
    id = found->get<int64_t>();
}

// One token, or a list of them.
void read_end_tokens(const Json& json, DecoderConfig& config, const std::string& source) {
  const auto found = json.find("eos_token_id");
  if (found == json.end() || !found->is_array())
    return read_token_id(json, "eos_token_id", config.eos_token_id);
  std::vector<int64_t> ids;
  detail::value_from_json(*found, ids, source + ": eos_token_id");
  if (ids.empty()) return;
  config.eos_token_id = ids.front();
  config.other_eos_token_ids.assign(ids.begin() + 1, ids.end());
}

}  // namespace

void check_config(const DecoderConfig& config) {
  check_positive("vocab_size", config.vocab_size);
  check_positive("hidden_size", config.hidden_size);
  check_positive("intermediate_size", config.intermediate_size);
  check_positive("num_hidden_layers", config.num_hidden_layers);
  check_positive("num_attention_heads", config.num_attention_heads);
  check_positive("num_key_value_heads", config.num_key_value_heads);
  check_positive("max_position_embeddings", config.max_position_embeddings);
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    fail("num_key_value_heads: expected a divisor of num_attention_heads ", config.num_attention_heads,
         ", got ", config.num_key_value_heads);
  }
  if (config.head_dim < 0 || config.resolved_head_dim() < 2 || config.resolved_head_dim() % 2 != 0) {
    fail("head_dim: expected an even number, got ", config.resolved_head_dim());
  }
  if (config.head_dim == 0 && config.hidden_size % config.num_attention_heads != 0) {
    fail("num_attention_heads: expected a divisor of hidden_size ", config.hidden_size,
         " (or a head_dim), got ", config.num_attention_heads);
  }
  if (!(config.rms_norm_eps > 0)) fail("rms_norm_eps: expected a positive number, got ", config.rms_norm_eps);
  if (!(config.initializer_range > 0)) {
    fail("initializer_range: expected a positive number, got ", config.initializer_range);
  }
  check_rope(config);
  check_config(config.gsa);
}

DecoderConfig read_model_config(const std::filesystem::path& path) {
  DecoderConfig config;
  config_from_json(read_json(path), config, path.string());
  try {
    check_config(config);
  } catch (const Error& error) {
    fail(path.string(), ": ", error.what());
  }
  return config;
}

DecoderConfig decoder_config_from_hf(const Json& json, const std::string& source) {
  if (!json.is_object() || !json.contains("model_type"))
    fail(source, ": expected a Hugging Face config with a model_type");
  const Json& type = json["model_type"];
  if (type != "llama" && type != "gated_sparse_attention") {
    fail(source, ": model_type: expected \"gated_sparse_attention\" or \"llama\", got ", type.dump());
  }
  expect(json, source, "hidden_act", "silu");
  DecoderConfig config;
  Json known = known_keys(json, config);
  for (const char* key : {"rope_scaling", "bos_token_id", "eos_token_id"}) known.erase(key);
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}) {
    if (!known.contains(key)) fail(source, ": expected the key '", key, "'");
  }
  if (!known.contains("num_key_value_heads")) known["num_key_value_heads"] = known["num_attention_heads"];
  if (type == "llama") {
    known.erase("gsa");
    // What transformers assumes where a Llama configuration is silent.
    if (!known.contains("rms_norm_eps")) config.rms_norm_eps = 1e-6;
    if (!known.contains("max_position_embeddings")) config.max_position_embeddings = 2048;
    config.gsa.gates.value_gate = config.gsa.gates.output_gate = false;
    config.gsa.indexer.reset();
  } else if (!known.contains("gsa")) {
    fail(source, ": expected the key 'gsa' (gates, indexer, budget)");
  }
  config_from_json(known, config, source);
  read_rope(json, config, source);
  read_token_id(json, "bos_token_id", config.bos_token_id);
  read_end_tokens(json, config, source);
  try {
    check_config(config);
  } catch (const Error& error) {
    fail(source, ": ", error.what());
  }
  return config;
}

Json decoder_config_to_hf(const DecoderConfig& config, const std::string& dtype) {
  Json json = Json::object();
  json["architectures"] = Json::array({"GatedSparseAttentionForCausalLM"});
  json["model_type"] = "gated_sparse_attention";
  DecoderConfig resolved = config;
  resolved.head_dim = config.resolved_head_dim();
  const Json fields = config_to_json(resolved);
  for (const auto& [key, value] : fields.items()) json[key] = value;
  json.erase("other_eos_token_ids");
  if (config.eos_token_id && !config.other_eos_token_ids.empty()) {
    json["eos_token_id"] = Json::array({*config.eos_token_id});
    for (const int64_t id : config.other_eos_token_ids) json["eos_token_id"].push_back(id);
  }
  json["hidden_act"] = "silu";
  json["torch_dtype"] = dtype;
  return json;
}

}  // namespace gsa
