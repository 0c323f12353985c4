// Checkpoint folders: round trips, transformers' Llama folders, and one clear line for what is wrong with a
// folder.

#include "gsa/models/checkpoint.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <functional>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/io/safetensors.h"
#include "gsa/testing/tiny_model.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;
using testing::random_tokens;
using testing::tiny_config;
using testing::tiny_model;

fs::path fresh_folder(const std::string& name) {
  fs::path folder = fs::path(GSA_BINARY_DIR) / "checkpoint_test" / name;
  fs::remove_all(folder);
  return folder;
}

std::string message_of(auto&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

at::Tensor logits_of(Decoder& model, const at::Tensor& tokens) {
  const at::NoGradGuard no_gradient;
  return model.logits(model.forward(tokens).hidden);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

TEST(Checkpoint, EveryVariantSurvivesBitwise) {
  for (const auto& [name, config] : testing::all_variants()) {
    Decoder model = tiny_model(config, at::kFloat);
    const fs::path folder = fresh_folder("round_trip");
    save_checkpoint(model, folder);
    Decoder again = load_checkpoint(folder);
    const at::Tensor tokens = random_tokens(config, 1, 30, 1);
    EXPECT_TRUE(logits_of(model, tokens).equal(logits_of(again, tokens))) << name;
    EXPECT_EQ(config_to_json(again.config().gsa), config_to_json(config.gsa)) << name;
    EXPECT_FALSE(again.embedding().requires_grad());
  }
}

TEST(Checkpoint, ShardsAndDtypesComeBack) {
  Decoder model = tiny_model(tiny_config("gsa", "inverse"), at::kFloat);
  const fs::path folder = fresh_folder("sharded");
  save_checkpoint(model, folder, 20'000);
  EXPECT_TRUE(fs::exists(folder / "model.safetensors.index.json"));
  LoadOptions options;
  options.dtype = at::kBFloat16;
  Decoder again = load_checkpoint(folder, options);
  EXPECT_EQ(again.dtype(), at::kBFloat16);
  EXPECT_EQ(again.named_buffers()[0].second.scalar_type(), at::kFloat);
  EXPECT_TRUE(again.named_buffers()[0].second.equal(model.named_buffers()[0].second));
  EXPECT_TRUE(again.embedding().equal(model.embedding().to(at::kBFloat16)));
}

TEST(Checkpoint, AFreshIndexerLeavesTheModelAsItIs) {
  Decoder gated = tiny_model(tiny_config("gated"), at::kFloat);
  GsaConfig wanted = tiny_config("gsa").gsa;
  wanted.indexer->activation = "sigmoid";
  Decoder extended = add_indexer(gated, wanted, 3);
  EXPECT_EQ(variant_name(extended.config().gsa), "gsa");
  EXPECT_EQ(extended.config().gsa.gates.identity, gated.config().gsa.gates.identity);
  const at::Tensor tokens = random_tokens(gated.config(), 1, 30, 1);
  ForwardOptions dense;
  dense.mode = AttentionMode::dense;
  const at::NoGradGuard no_gradient;
  EXPECT_TRUE(gated.forward(tokens, dense).hidden.equal(extended.forward(tokens, dense).hidden));
  // An indexer that is there is replaced, in another kind if need be.
  wanted.indexer->activation = "hard_sigmoid";
  Decoder replaced = add_indexer(extended, wanted, 4);
  EXPECT_EQ(replaced.config().gsa.indexer->activation, "hard_sigmoid");
  EXPECT_FALSE(replaced.layers()[0].self_attn.indexer->query_proj.weight.equal(
      extended.layers()[0].self_attn.indexer->query_proj.weight));
  EXPECT_THROW(add_indexer(gated, tiny_config("gated").gsa, 1), Error);
}

TEST(Checkpoint, TrainingALoadedModelLeavesItsFileAlone) {
  Decoder model = tiny_model(tiny_config("dense"), at::kFloat);
  const fs::path folder = fresh_folder("untouched");
  save_checkpoint(model, folder);
  const std::string before = read_file(folder / "model.safetensors");
  Decoder loaded = load_checkpoint(folder);
  const at::NoGradGuard no_gradient;
  loaded.layers()[0].mlp.up_proj.weight.add_(1.0);
  EXPECT_EQ(before, read_file(folder / "model.safetensors"));
}

/// Writes the model's tensors after `change`, and tells what loading says.
std::string load_after(const std::function<void(NamedTensors&)>& change) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kFloat);
  const fs::path folder = fresh_folder("wrong");
  save_checkpoint(model, folder);
  NamedTensors tensors = model.named_parameters();
  for (auto& buffer : model.named_buffers()) tensors.push_back(buffer);
  for (auto& [name, tensor] : tensors) tensor = tensor.detach();
  change(tensors);
  write_safetensors(folder / "model.safetensors", tensors);
  const std::string message = message_of([&] { load_checkpoint(folder); });
  return message.starts_with(folder.string()) ? message.substr(folder.string().size() + 2) : message;
}

TEST(Checkpoint, AMissingForeignOrMisshapenTensorIsNamed) {
  EXPECT_EQ(load_after([](NamedTensors&) {}), "no error");
  EXPECT_EQ(load_after([](NamedTensors& all) { all.pop_back(); }),
            "tensor 'model.layers.1.self_attn.indexer.running_mean' [] is missing");
  EXPECT_EQ(load_after([](NamedTensors& all) {
              all.emplace_back("model.layers.0.self_attn.q_norm.weight", all[0].second.clone());
            }),
            "unexpected tensor 'model.layers.0.self_attn.q_norm.weight' (nearest in the model: "
            "'model.layers.0.self_attn.q_proj.weight')");
  EXPECT_EQ(load_after([](NamedTensors& all) { all[0].second = all[0].second.slice(0, 0, 60).clone(); }),
            "tensor 'model.embed_tokens.weight' expected shape [61,32], got [60,32]");
  EXPECT_EQ(load_after([](NamedTensors& all) { all[0].second = all[0].second.to(at::kLong); }),
            "tensor 'model.embed_tokens.weight' expected floating-point numbers, got Long");
}

TEST(Checkpoint, AFolderWithOneFileMissingSaysWhich) {
  Decoder model = tiny_model(tiny_config("gsa"), at::kFloat);
  for (const char* file : {"config.json", "model.safetensors"}) {
    const fs::path folder = fresh_folder("incomplete");
    save_checkpoint(model, folder);
    fs::remove(folder / file);
    EXPECT_NE(message_of([&] { load_checkpoint(folder); }).find(file), std::string::npos);
  }
  EXPECT_NE(message_of([&] { load_checkpoint("/no/such/folder"); }).find("/no/such/folder"),
            std::string::npos);
}

TEST(Checkpoint, LlamaFoldersOfTransformersGiveTheSameLogits) {
  const fs::path folder = fresh_folder("llama");
  const std::string command =
      std::string(GSA_PYTHON) + " " GSA_SOURCE_DIR "/tests/golden/llama.py " + folder.string();
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  for (const char* name : {"grouped", "tied", "llama3", "linear_bias"}) {
    SCOPED_TRACE(name);
    const SafetensorsFile expected(folder / (std::string(name) + ".expected.safetensors"));
    const at::Tensor tokens = expected.tensor("tokens"), reference = expected.tensor("double");
    Decoder single = load_checkpoint(folder / name);
    EXPECT_EQ(variant_name(single.config().gsa), "dense");
    // The tolerance rule: no further from the fp64 reference than twice transformers' own fp32.
    const double theirs = largest_difference(expected.tensor("single"), reference);
    EXPECT_LE(largest_difference(logits_of(single, tokens), reference), 2 * theirs);
    LoadOptions options;
    options.dtype = at::kDouble;
    Decoder wide = load_checkpoint(folder / name, options);
    EXPECT_LT(largest_difference(logits_of(wide, tokens), reference), 1e-9);
    // A converted model starts as the same function, to the bit.
    Decoder converted = convert_dense(single, tiny_config("gsa").gsa, 1);
    const at::NoGradGuard no_gradient;
    ForwardOptions dense;
    dense.mode = AttentionMode::dense;
    EXPECT_TRUE(converted.logits(converted.forward(tokens, dense).hidden).equal(logits_of(single, tokens)));
  }
}

}  // namespace
}  // namespace gsa
