// gsa model info | init: what a model is made of, and a fresh one.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/config.h"
#include "gsa/base/file.h"
#include "gsa/base/json.h"
#include "gsa/models/checkpoint.h"

namespace gsa::cli {
namespace {

namespace fs = std::filesystem;

// A checkpoint folder's configuration, or one of configs/models.
DecoderConfig configuration_of(const std::string& source) {
  if (!fs::is_directory(source)) return read_model_config(source);
  const fs::path path = fs::path(source) / "config.json";
  return decoder_config_from_hf(read_json(path), path.string());
}

std::string thousands(int64_t number) {
  std::string digits = std::to_string(number);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

Json parameter_counts(const DecoderConfig& config) {
  Json counts = Json::object();
  for (const char* part : {"embedding", "attention", "gates", "indexer", "mlp", "norms", "head"})
    counts[part] = 0;
  int64_t total = 0;
  for (const auto& [name, tensor] : Decoder(config).named_parameters()) {
    counts[parameter_part(name)] = counts[parameter_part(name)].get<int64_t>() + tensor.numel();
    total += tensor.numel();
  }
  counts["total"] = total;
  return counts;
}

bool has_float8_keys(const DecoderConfig& config) {
  return config.gsa.indexer && config.gsa.indexer->key_dtype == "float8_e4m3fn";
}

// Bytes that one token takes in the cache: bf16 keys and values, index keys in bf16 or their own dtype.
int64_t cache_bytes(const DecoderConfig& config) {
  const int64_t index = config.gsa.indexer ? config.gsa.indexer->index_dim : 0;
  const int64_t key_value = 2 * config.num_key_value_heads * config.resolved_head_dim();
  return config.num_hidden_layers * (2 * key_value + (has_float8_keys(config) ? 1 : 2) * index);
}

void print_info(const std::string& source, bool as_json) {
  const DecoderConfig config = configuration_of(source);
  const Json counts = parameter_counts(config);
  if (as_json) {
    Json report = {{"variant", variant_name(config.gsa)},
                   {"parameters", counts},
                   {"cache_bytes_per_token", cache_bytes(config)}};
    fmt::print("{}\n", report.dump(2));
    return;
  }
  fmt::print("{}: {}, {} layers, width {}, {} query heads over {} key/value heads of {}\n\n", source,
             variant_name(config.gsa), config.num_hidden_layers, config.hidden_size,
             config.num_attention_heads, config.num_key_value_heads, config.resolved_head_dim());
  const auto total = counts["total"].get<double>();
  for (const auto& [part, count] : counts.items()) {
    fmt::print("  {:<10} {:>16}  {:>5.1f} %\n", part, thousands(count.get<int64_t>()),
               100.0 * count.get<double>() / total);
  }
  fmt::print("\n  cache: {} bytes a token in bf16{}\n", thousands(cache_bytes(config)),
             has_float8_keys(config) ? ", index keys in FP8" : "");
}

struct InitArguments {
  std::string config, output, variant, preset;
  std::vector<std::string> assignments;
  uint64_t seed = 0;
};

void init_model(const InitArguments& arguments) {
  DecoderConfig config = read_model_config(arguments.config);
  if (!arguments.preset.empty()) apply_preset(config.gsa, arguments.preset);
  if (!arguments.variant.empty()) apply_variant(config.gsa, arguments.variant);
  for (const auto& assignment : arguments.assignments) config_set(config, assignment);
  Decoder model(config);
  model.initialize(arguments.seed);
  save_checkpoint(model, arguments.output);
  fmt::print("{}: {} with {} parameters\n", arguments.output, variant_name(config.gsa),
             thousands(parameter_counts(config)["total"].get<int64_t>()));
}

struct ConvertArguments {
  std::string input, output, variant = "gsa", preset = "recommended";
  std::vector<std::string> assignments;
  uint64_t seed = 0;
};

void convert_model(const ConvertArguments& arguments) {
  const Decoder dense = load_checkpoint(arguments.input);
  GsaConfig gsa;
  apply_preset(gsa, arguments.preset);
  apply_variant(gsa, arguments.variant);
  for (const auto& assignment : arguments.assignments) config_set(gsa, assignment);
  check_config(gsa);
  Decoder converted = convert_dense(dense, gsa, arguments.seed);
  save_checkpoint(converted, arguments.output);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
    const fs::path file = fs::path(arguments.input) / name;
    if (fs::exists(file)) write_file(fs::path(arguments.output) / name, read_file(file));
  }
  fmt::print("{}: {} from {}; gates are the identity, the indexer is untrained\n", arguments.output,
             variant_name(converted.config().gsa), arguments.input);
}

}  // namespace

void add_model(CLI::App& app) {
  CLI::App* model = app.add_subcommand("model", "Show what a model is made of, or make a fresh one");
  model->require_subcommand(1);

  CLI::App* info = model->add_subcommand("info", "Parameters by part");
  auto source = std::make_shared<std::string>();
  auto as_json = std::make_shared<bool>(false);
  info->add_option("model", *source, "A configuration (configs/models/*.json) or a checkpoint folder")
      ->required();
  info->add_flag("--json", *as_json, "Print JSON");
  info->callback([source, as_json] { print_info(*source, *as_json); });

  CLI::App* init = model->add_subcommand("init", "Write a checkpoint with freshly drawn parameters");
  auto arguments = std::make_shared<InitArguments>();
  init->add_option("config", arguments->config, "A configuration (configs/models/*.json)")->required();
  init->add_option("output", arguments->output, "The checkpoint folder to write")->required();
  init->add_option("--variant", arguments->variant, "dense | gated | sparse | gsa");
  init->add_option("--preset", arguments->preset, "paper | recommended");
  init->add_option("--set", arguments->assignments, "Override a field, e.g. gsa.budget.k_base=512")
      ->allow_extra_args(false);
  init->add_option("--seed", arguments->seed, "Of the drawn parameters");
  init->callback([arguments] { init_model(*arguments); });
}

void add_convert(CLI::App& app) {
  CLI::App* convert = app.add_subcommand("convert", "Give a dense Llama checkpoint gates and an indexer");
  auto arguments = std::make_shared<ConvertArguments>();
  convert->add_option("input", arguments->input, "A dense checkpoint folder (Llama architecture)")
      ->required();
  convert->add_option("output", arguments->output, "The checkpoint folder to write")->required();
  convert->add_option("--variant", arguments->variant, "gated | sparse | gsa");
  convert->add_option("--preset", arguments->preset, "paper | recommended");
  convert->add_option("--set", arguments->assignments, "Override a field, e.g. budget.k_base=512")
      ->allow_extra_args(false);
  convert->add_option("--seed", arguments->seed, "Of the indexer's parameters");
  convert->callback([arguments] { convert_model(*arguments); });
}

}  // namespace gsa::cli
