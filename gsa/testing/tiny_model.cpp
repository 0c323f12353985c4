#include "gsa/testing/tiny_model.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randint.h>

namespace gsa::testing {

DecoderConfig tiny_config(const std::string& variant, const std::string& rule) {
  DecoderConfig config;
  config.vocab_size = 61;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.max_position_embeddings = 256;
  config.initializer_range = 0.2;  // large enough for attention to differ between keys
  config.gsa.indexer = IndexerConfig{2, 8, 4, "hard_sigmoid", 2, 3, "max"};
  config.gsa.budget = BudgetConfig{rule, 8, 6, 12};
  apply_variant(config.gsa, variant);
  return config;
}

Decoder tiny_model(const DecoderConfig& config, at::ScalarType dtype, uint64_t seed) {
  Decoder model(config);
  model.initialize(seed, at::kCPU, dtype);
  if (config.gsa.indexer) {
    const at::NoGradGuard no_gradient;
    ForwardOptions options;
    options.update_statistics = true;
    model.forward(random_tokens(config, 2, 40, seed + 1), options);
    model.commit_statistics();
  }
  return model;
}

at::Tensor random_tokens(const DecoderConfig& config, int64_t batch, int64_t tokens, uint64_t seed) {
  return at::randint(0, config.vocab_size, {batch, tokens}, at::detail::createCPUGenerator(seed), at::kLong);
}

std::vector<std::pair<std::string, DecoderConfig>> all_variants() {
  std::vector<std::pair<std::string, DecoderConfig>> all;
  for (const char* variant : {"dense", "gated", "sparse", "gsa"})
    all.emplace_back(variant, tiny_config(variant));
  for (const bool value_gate : {true, false}) {
    DecoderConfig config = tiny_config("gated");
    config.gsa.gates.value_gate = value_gate;
    config.gsa.gates.output_gate = !value_gate;
    all.emplace_back(value_gate ? "gated with G2 alone" : "gated with G1 alone", config);
  }
  DecoderConfig paper = tiny_config("gsa");
  apply_preset(paper.gsa, "paper");
  all.emplace_back("gsa, preset paper", paper);
  for (const char* rule : {"inverse", "as_printed", "entropy", "max_score", "random"}) {
    all.emplace_back(std::string("gsa, budget ") + rule, tiny_config("gsa", rule));
  }
  DecoderConfig positionless = tiny_config("gsa");
  positionless.gsa.indexer->index_rotary_dim = 0;
  positionless.tie_word_embeddings = true;
  all.emplace_back("gsa, tied, indexer without positions", positionless);
  for (const char* rule : {"fixed", "inverse"}) {
    DecoderConfig float8 = tiny_config("gsa", rule);
    float8.gsa.indexer->key_dtype = "float8_e4m3fn";
    all.emplace_back(std::string("gsa, FP8 index keys, budget ") + rule, float8);
  }
  return all;
}

}  // namespace gsa::testing
