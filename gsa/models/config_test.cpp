#include "gsa/models/config.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/models/decoder.h"

namespace gsa {
namespace {

const char* const kLlama =
    R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256,
  "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
  "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
  "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                   "original_max_position_embeddings": 8192, "rope_type": "llama3"},
  "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": [128001, 128008], "torch_dtype": "bfloat16",
  "attention_dropout": 0.0, "pretraining_tp": 1, "mlp_bias": false, "use_cache": true})";

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

Json llama_with(const char* key, const Json& value) {
  Json json = parse_json(kLlama, "test");
  json[key] = value;
  return json;
}

TEST(ModelConfig, ReadsLlama) {
  const DecoderConfig config = decoder_config_from_hf(parse_json(kLlama, "test"), "config.json");
  EXPECT_EQ(variant_name(config.gsa), "dense");
  EXPECT_EQ(config.rope_scaling->rope_type, "llama3");
  EXPECT_EQ(config.rope_scaling->factor, 32.0);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(*config.eos_token_id, 128001);
  EXPECT_EQ(config.other_eos_token_ids, std::vector<int64_t>{128008});
  EXPECT_TRUE(config.tie_word_embeddings);
}

TEST(ModelConfig, ReadsTheNewerSpellingOfRope) {
  Json json = parse_json(kLlama, "test");
  json.erase("rope_theta");
  json.erase("rope_scaling");
  json["rope_parameters"] = {{"rope_theta", 77.0}, {"rope_type", "default"}};
  const DecoderConfig config = decoder_config_from_hf(json, "config.json");
  EXPECT_EQ(config.rope_theta, 77.0);
  EXPECT_FALSE(config.rope_scaling);
}

TEST(ModelConfig, WhatWouldComputeSomethingElseIsAnError) {
  const auto message = [](const Json& json) {
    return message_of([&] { decoder_config_from_hf(json, "c.json"); });
  };
  EXPECT_EQ(message(llama_with("model_type", "mamba")),
            "c.json: model_type: expected \"gated_sparse_attention\" or \"llama\", got \"mamba\"");
  EXPECT_EQ(message(llama_with("hidden_act", "gelu")), "c.json: hidden_act: expected \"silu\", got \"gelu\"");
  EXPECT_EQ(message(llama_with("rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}})),
            "c.json: rope_scaling.rope_type: expected default | linear | llama3, got 'yarn'");
  EXPECT_EQ(message(llama_with("num_key_value_heads", 5)),
            "c.json: num_key_value_heads: expected a divisor of num_attention_heads 32, got 5");
  EXPECT_EQ(message(llama_with("vocab_size", "many")),
            "c.json: vocab_size: expected a whole number, got \"many\"");
  EXPECT_EQ(message(Json::object()), "c.json: expected a Hugging Face config with a model_type");
}

TEST(ModelConfig, SurvivesItsOwnConfigJson) {
  for (const char* variant : {"dense", "gated", "sparse", "gsa"}) {
    DecoderConfig config = decoder_config_from_hf(parse_json(kLlama, "test"), "config.json");
    apply_variant(config.gsa, variant);
    config.gsa.gates.initial = 0.9;
    config.tokenizer_hash = "sha256:abc";
    const DecoderConfig again =
        decoder_config_from_hf(decoder_config_to_hf(config, "float32"), "config.json");
    EXPECT_EQ(config_to_json(config), config_to_json(again)) << variant;
  }
}

TEST(ModelConfig, NestedMistakesNameTheNearestKey) {
  Json json = decoder_config_to_hf(decoder_config_from_hf(parse_json(kLlama, "test"), "c.json"), "float32");
  json["gsa"]["budget"]["k_bas"] = 5;
  EXPECT_EQ(message_of([&] { decoder_config_from_hf(json, "c.json"); }),
            "c.json: gsa.budget.k_bas: unknown key (did you mean 'k_base'?)");
}

TEST(ModelConfig, EveryShippedConfigurationIsValid) {
  int64_t found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(GSA_SOURCE_DIR "/configs/models")) {
    const DecoderConfig config = read_model_config(entry.path());
    EXPECT_GT(Decoder(config).named_parameters().size(), 10u) << entry.path();
    ++found;
  }
  EXPECT_GE(found, 4);
}

TEST(ModelConfig, ThePaperModelHasItsSizes) {
  DecoderConfig config = read_model_config(GSA_SOURCE_DIR "/configs/models/1.7b.json");
  EXPECT_EQ(config.num_hidden_layers, 24);
  EXPECT_EQ(config.hidden_size, 2048);
  EXPECT_EQ(config.num_attention_heads, 16);
  EXPECT_EQ(config.num_key_value_heads, 4);
  int64_t parameters = 0;
  for (const auto& [name, tensor] : Decoder(config).named_parameters()) parameters += tensor.numel();
  EXPECT_NEAR(static_cast<double>(parameters), 1.7e9, 0.1e9);
}

}  // namespace
}  // namespace gsa
