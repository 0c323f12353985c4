#include "gsa/train/starting_model.h"

#include <c10/core/CachingDeviceAllocator.h>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/models/checkpoint.h"
#include "gsa/text/sha256.h"
#include "gsa/text/token_shards.h"
#include "gsa/text/tokenizer.h"
#include "gsa/train/progress.h"

namespace gsa {
namespace {

/// The tokenizer a checkpoint was trained with, as far as it says; "" when it does not.
std::string tokenizer_of(const RunConfig& config) {
  if (!config.model.tokenizer_hash.empty() || config.checkpoint.empty()) return config.model.tokenizer_hash;
  const auto file = std::filesystem::path(config.checkpoint) / "tokenizer.json";
  return std::filesystem::exists(file) ? Tokenizer::load(file).hash() : std::string();
}

/// Whether the run adds an indexer to a model whose gates are those it wants.
bool adds_indexer(const GsaConfig& has, const GsaConfig& wanted) {
  return !has.indexer && wanted.indexer && has.gates.value_gate == wanted.gates.value_gate &&
         has.gates.output_gate == wanted.gates.output_gate;
}

}  // namespace

std::string check_data(RunConfig& config) {
  std::string contents;
  const std::string expected = tokenizer_of(config);
  for (const auto& source : config.data.sources) {
    const TokenShards shards(source.path, source.split);
    if (!expected.empty() && shards.tokenizer_hash() != expected) {
      fail("data: ", source.path, " was made with another tokenizer (", shards.tokenizer_hash(), ") than ",
           config.checkpoint.empty() ? "the run's model" : config.checkpoint, " (", expected, ")");
    }
    if (shards.vocab_size() > config.model.vocab_size) {
      fail("data: ", source.path, " has a vocabulary of ", shards.vocab_size(),
           " tokens, model.vocab_size is ", config.model.vocab_size);
    }
    config.model.tokenizer_hash = shards.tokenizer_hash();
    const Json separator = shards.manifest().value("separator", Json());
    if (!config.model.eos_token_id && separator.is_number_integer()) config.model.eos_token_id = separator;
    contents += shards.manifest().at("splits").at(source.split).dump() + "\n";
  }
  return "sha256:" + sha256_hex(contents);
}

Decoder starting_model(const RunConfig& config, at::Device device) {
  if (config.checkpoint.empty()) {
    Decoder model(config.model);
    model.initialize(config.seed, device);
    return model;
  }
  Decoder model = load_for_training(config.checkpoint, device);
  const std::string has = variant_name(model.config().gsa), wanted = variant_name(config.model.gsa);
  if (has == "dense" && wanted != "dense")
    return convert_dense(std::move(model), config.model.gsa, config.seed);
  if (adds_indexer(model.config().gsa, config.model.gsa))
    return add_indexer(std::move(model), config.model.gsa, config.seed);
  if (has != wanted)
    fail("checkpoint: ", config.checkpoint, " is a '", has, "' model, the run's model.gsa describes '",
         wanted, "'");
  if (config.model.gsa.indexer) {
    model.set_indexer_options(*config.model.gsa.indexer);
    model.set_budget(config.model.gsa.budget);
  }
  return model;
}

Decoder load_for_training(const std::filesystem::path& folder, at::Device device) {
  LoadOptions options;
  options.device = device;
  options.dtype = at::kFloat;
  Decoder model = load_checkpoint(folder, options);
  // The loaded tensors may lie in a mapped file, aligned as it happens; products of aligned memory are the
  // same bits every time.
  model.visit_tensors([](const std::string&, at::Tensor& tensor) { tensor = tensor.clone(); });
  return model;
}

int64_t used_memory(at::Device device) {
  if (!device.is_cuda()) return resident_memory();
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].current;
}

}  // namespace gsa
