#include "gsa/generate/generate.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>

#include "gsa/base/error.h"
#include "gsa/base/json.h"
#include "gsa/generate/stop_filter.h"
#include "gsa/testing/tiny_model.h"
#include "gsa/text/byte_level.h"
#include "gsa/text/utf8.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

/// A tokenizer with one token per byte, and <|endoftext|>. `spare` more tokens make it another file.
fs::path byte_tokenizer(int spare = 0) {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_characters()[static_cast<size_t>(byte)]] = byte;
  for (int i = 0; i < spare; ++i) vocabulary["spare" + std::to_string(i)] = 257 + i;
  const Json level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json added = {
      {"id", 256},       {"content", "<|endoftext|>"}, {"single_word", false}, {"lstrip", false},
      {"rstrip", false}, {"normalized", false},        {"special", true}};
  const Json model = {{"type", "BPE"},
                      {"dropout", nullptr},
                      {"unk_token", nullptr},
                      {"continuing_subword_prefix", nullptr},
                      {"end_of_word_suffix", nullptr},
                      {"fuse_unk", false},
                      {"byte_fallback", false},
                      {"ignore_merges", false},
                      {"vocab", vocabulary},
                      {"merges", Json::array()}};
  const Json file = {{"version", "1.0"},
                     {"truncation", nullptr},
                     {"padding", nullptr},
                     {"added_tokens", Json::array({added})},
                     {"normalizer", nullptr},
                     {"pre_tokenizer", level},
                     {"post_processor", nullptr},
                     {"decoder", level},
                     {"model", model}};
  fs::path folder = fs::path(GSA_BINARY_DIR) / "generate_test" / std::to_string(spare);
  fs::create_directories(folder);
  write_json(folder / "tokenizer.json", file);
  return folder;
}

DecoderConfig byte_config() {
  DecoderConfig config = testing::tiny_config("gsa");
  config.vocab_size = 257;
  return config;
}

GenerateOptions sampled(uint64_t seed) {
  GenerateOptions options;
  options.max_new_tokens = 40;
  options.sampling = {1.5, 0, 1.0, seed};
  options.ignore_end = true;
  return options;
}

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::map<int32_t, int> draws(const SamplingConfig& config, const at::Tensor& logits, int count) {
  Sampler sampler(config);
  std::map<int32_t, int> seen;
  for (int i = 0; i < count; ++i) ++seen[sampler(logits)];
  return seen;
}

TEST(Sampler, GreedyTakesTheFirstOfTheHighest) {
  EXPECT_EQ(Sampler({})(at::tensor({0.5f, 2.0f, 2.0f, 1.0f})), 1);
  EXPECT_EQ(Sampler({})(at::tensor({-1.0, -INFINITY}).to(at::kBFloat16)), 0);
  EXPECT_THROW(Sampler({})(at::tensor({0.5f, NAN})), Error);
}

TEST(Sampler, DrawsFollowTheTemperature) {
  const at::Tensor logits = at::tensor({0.0, std::log(2.0), std::log(4.0)});
  auto seen = draws({1.0, 0, 1.0, 1}, logits, 7000);
  EXPECT_NEAR(seen[0], 1000, 150);
  EXPECT_NEAR(seen[1], 2000, 200);
  seen = draws({0.5, 0, 1.0, 1}, logits, 2100);  // weights 1, 4, 16
  EXPECT_NEAR(seen[0], 100, 50);
  EXPECT_NEAR(seen[2], 1600, 120);
}

TEST(Sampler, TopKAndTopPCutTheTail) {
  const at::Tensor logits = at::tensor({std::log(0.1), std::log(0.5), std::log(0.3), std::log(0.1)});
  EXPECT_EQ(draws({1.0, 2, 1.0, 1}, logits, 500).size(), 2u);
  EXPECT_EQ(draws({1.0, 0, 0.5, 1}, logits, 500).size(), 1u);
  EXPECT_EQ(draws({1.0, 0, 0.79, 1}, logits, 500).size(), 2u);
  EXPECT_EQ(draws({1.0, 0, 0.85, 1}, logits, 500).count(3), 0u);  // of the tied tokens the lower one
  EXPECT_EQ(draws({1.0, 1, 1.0, 1}, logits, 50).begin()->first, 1);
  EXPECT_EQ(draws({1.0, 0, 1.0, 7}, logits, 50), draws({1.0, 0, 1.0, 7}, logits, 50));
}

TEST(Sampler, ValuesOutOfRangeAreNamed) {
  EXPECT_EQ(message_of([] { Sampler({-1.0}); }), "temperature: expected zero or more, got -1");
  EXPECT_EQ(message_of([] { Sampler({1.0, -2}); }), "top_k: expected zero or more, got -2");
  EXPECT_EQ(message_of([] { Sampler({1.0, 0, 0.0}); }), "top_p: expected a number in (0, 1], got 0");
}

TEST(StopFilter, HoldsBackWhatMayBecomeAStop) {
  StopFilter filter({"END", "\n\n", ""});
  EXPECT_EQ(filter.push("one E"), "one ");
  EXPECT_EQ(filter.push("N"), "");
  EXPECT_EQ(filter.push("T\n"), "ENT");
  EXPECT_EQ(filter.push("two\n"), "\ntwo");
  EXPECT_EQ(filter.push("\nthree"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.finish(), "");
  StopFilter open({"END"});
  EXPECT_EQ(open.push("xEN"), "x");
  EXPECT_EQ(open.finish(), "EN");
  StopFilter earliest({"later", "e"});
  EXPECT_EQ(earliest.push("x later"), "x lat");
}

TEST(Generate, StreamsWhatTheWholePrefillPredicts) {
  Decoder model = testing::tiny_model(byte_config(), at::kDouble);
  const Tokenizer tokenizer = Tokenizer::load(byte_tokenizer());
  GenerateOptions options;
  options.max_new_tokens = 20;
  options.ignore_end = true;
  options.prefill_chunk = 7;
  std::string streamed;
  const Generation result = generate(model, tokenizer, "a prompt of some length", options,
                                     [&](std::string_view piece) { streamed += piece; });
  EXPECT_EQ(streamed, result.text);
  EXPECT_EQ(result.finish, "length");
  EXPECT_EQ(result.prompt_tokens, 23);
  EXPECT_EQ(result.decoded_tokens, 19);
  EXPECT_GT(result.prefill_rate(), 0.0);
  std::vector<int64_t> all;
  for (const int32_t id : tokenizer.encode("a prompt of some length")) all.push_back(id);
  for (const int32_t expected : result.tokens) {
    const at::Tensor hidden = model.forward(at::tensor(all).unsqueeze(0)).hidden;
    EXPECT_EQ(model.logits(hidden)[0][-1].argmax().item<int64_t>(), expected);
    all.push_back(expected);
  }
}

TEST(Generate, NeverStreamsHalfACharacter) {
  Decoder model = testing::tiny_model(byte_config(), at::kFloat);
  const Tokenizer tokenizer = Tokenizer::load(byte_tokenizer());
  for (uint64_t seed = 0; seed < 5; ++seed) {  // random bytes: mostly broken UTF-8
    std::string streamed;
    const Generation result = generate(model, tokenizer, "x", sampled(seed), [&](std::string_view piece) {
      EXPECT_FALSE(find_invalid_utf8(piece));
      streamed += piece;
    });
    EXPECT_EQ(streamed, result.text);
    EXPECT_EQ(result.text, tokenizer.decode(result.tokens, /*skip_special=*/true));
  }
}

TEST(Generate, TheSeedDecides) {
  Decoder model = testing::tiny_model(byte_config(), at::kFloat);
  const Tokenizer tokenizer = Tokenizer::load(byte_tokenizer());
  EXPECT_EQ(generate(model, tokenizer, "x", sampled(3)).tokens,
            generate(model, tokenizer, "x", sampled(3)).tokens);
  EXPECT_NE(generate(model, tokenizer, "x", sampled(3)).tokens,
            generate(model, tokenizer, "x", sampled(4)).tokens);
}

TEST(Generate, StopsAtStopStringsAndTheEnd) {
  Decoder model = testing::tiny_model(byte_config(), at::kFloat);
  const Tokenizer tokenizer = Tokenizer::load(byte_tokenizer());
  GenerateOptions options = sampled(3);
  const Generation whole = generate(model, tokenizer, "x", options);
  options.stop = {whole.text.substr(whole.text.size() / 2, 4)};
  const Generation stopped = generate(model, tokenizer, "x", options);
  EXPECT_EQ(stopped.finish, "stop");
  EXPECT_EQ(stopped.text, whole.text.substr(0, whole.text.find(options.stop[0])));

  DecoderConfig config = byte_config();
  config.eos_token_id = whole.tokens[5];
  Decoder ending = testing::tiny_model(config, at::kFloat);
  options = sampled(3);
  options.ignore_end = false;
  const Generation ended = generate(ending, tokenizer, "x", options);
  EXPECT_EQ(ended.finish, "end");
  EXPECT_LE(ended.tokens.size(), 6u);
  EXPECT_EQ(ended.tokens.back(), *config.eos_token_id);
}

TEST(Generate, MistakesAreOneLine) {
  DecoderConfig config = byte_config();
  config.tokenizer_hash = Tokenizer::load(byte_tokenizer()).hash();
  Decoder model = testing::tiny_model(config, at::kFloat);
  const Tokenizer right = Tokenizer::load(byte_tokenizer()), other = Tokenizer::load(byte_tokenizer(3));
  EXPECT_NE(message_of([&] {
              generate(model, other, "x", {});
            }).find("wrong tokenizer: the model was trained with"),
            std::string::npos);
  config.tokenizer_hash = "";
  Decoder unnamed = testing::tiny_model(config, at::kFloat);
  EXPECT_NE(
      message_of([&] { generate(unnamed, other, "x", {}); }).find("it has 260 tokens, the model only 257"),
      std::string::npos);
  EXPECT_EQ(message_of([&] { generate(model, right, "", {}); }), "prompt: expected some text, got none");
  GenerateOptions none;
  none.max_new_tokens = 0;
  EXPECT_EQ(message_of([&] { generate(model, right, "x", none); }),
            "max_new_tokens: expected a positive number, got 0");
}

}  // namespace
}  // namespace gsa
