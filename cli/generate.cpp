// gsa generate: continue a prompt.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "gsa/base/device.h"
#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/base/json.h"
#include "gsa/generate/generate.h"
#include "gsa/models/checkpoint.h"

namespace gsa::cli {
namespace {

struct GenerateArguments {
  std::string model, prompt, prompt_file, tokenizer, device = "auto", dtype;
  GenerateOptions options;
  bool dense = false, quiet = false, json = false;
};

std::string prompt_text(const GenerateArguments& arguments) {
  if (!arguments.prompt_file.empty()) return read_file(arguments.prompt_file);
  if (arguments.prompt != "-") return arguments.prompt;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::optional<at::ScalarType> parse_dtype(const std::string& name) {
  if (name.empty()) return std::nullopt;
  if (name == "fp32" || name == "float32") return at::kFloat;
  if (name == "bf16" || name == "bfloat16") return at::kBFloat16;
  if (name == "fp64" || name == "float64") return at::kDouble;
  fail("--dtype: expected fp32 | bf16 | fp64, got '", name, "'");
}

void print_rates(const Generation& result) {
  fmt::print(stderr, "prefill: {} tokens, {:.1f} tokens/s; decode: {} tokens, {:.1f} tokens/s ({})\n",
             result.prompt_tokens, result.prefill_rate(), result.decoded_tokens, result.decode_rate(),
             result.finish);
}

void run(GenerateArguments arguments) {
  LoadOptions load;
  load.device = parse_device(arguments.device);
  load.dtype = parse_dtype(arguments.dtype);
  const std::string tokenizer_path = arguments.tokenizer.empty() ? arguments.model : arguments.tokenizer;
  const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
  Decoder model = load_checkpoint(arguments.model, load);
  arguments.options.mode = arguments.dense ? AttentionMode::dense : AttentionMode::sparse;
  const std::string prompt = prompt_text(arguments);
  const bool streams = !arguments.json && !arguments.quiet;
  std::string unprinted = prompt;  // shown with the first new text: a mistake leaves no half-printed answer
  const Generation result =
      generate(model, tokenizer, prompt, arguments.options, [&](std::string_view piece) {
        if (!streams) return;
        unprinted += piece;
        std::fwrite(unprinted.data(), 1, unprinted.size(), stdout);
        std::fflush(stdout);
        unprinted.clear();
      });
  if (arguments.json) {
    const Json report = {{"text", result.text},
                         {"tokens", result.tokens},
                         {"finish", result.finish},
                         {"prompt_tokens", result.prompt_tokens},
                         {"prefill_tokens_per_second", result.prefill_rate()},
                         {"decode_tokens_per_second", result.decode_rate()}};
    fmt::print("{}\n", report.dump(2));
    return;
  }
  fmt::print("{}\n", arguments.quiet ? result.text : "");
  std::fflush(stdout);
  print_rates(result);
  if (result.prompt_tokens + arguments.options.max_new_tokens > model.config().max_position_embeddings) {
    fmt::print(stderr, "note: {} positions asked for, the model was made for {}\n",
               result.prompt_tokens + arguments.options.max_new_tokens,
               model.config().max_position_embeddings);
  }
}

}  // namespace

void add_generate(CLI::App& app) {
  CLI::App* generate = app.add_subcommand("generate", "Continue a prompt with a model, streaming the text");
  auto arguments = std::make_shared<GenerateArguments>();
  auto& options = arguments->options;
  generate->add_option("model", arguments->model, "A checkpoint folder")->required();
  auto* prompt = generate->add_option("--prompt,-p", arguments->prompt,
                                      "The text to continue; '-' reads standard input");
  auto* file =
      generate->add_option("--prompt-file", arguments->prompt_file, "A file with the text to continue");
  prompt->excludes(file);
  generate->add_option("--max-new-tokens,-n", options.max_new_tokens, "How many tokens at most")
      ->capture_default_str();
  generate->add_option("--temperature", options.sampling.temperature, "0: greedy")->capture_default_str();
  generate->add_option("--top-k", options.sampling.top_k, "Only the k likeliest tokens; 0: all")
      ->capture_default_str();
  generate->add_option("--top-p", options.sampling.top_p, "Only tokens that together reach this probability")
      ->capture_default_str();
  generate->add_option("--seed", options.sampling.seed, "Of the sampling")->capture_default_str();
  generate->add_option("--stop", options.stop, "Text that ends the generation (may be repeated)")
      ->allow_extra_args(false);
  generate->add_flag("--ignore-end", options.ignore_end, "Go on after the end-of-text token");
  generate->add_flag(
      "--no-special", [&options](int64_t) { options.add_special = false; },
      "Leave out the tokens that the tokenizer adds to a text (BOS)");
  generate->add_flag("--dense", arguments->dense, "Attend densely, whatever the model's selection");
  generate->add_option("--tokenizer", arguments->tokenizer, "tokenizer.json, when the folder has none");
  generate->add_option("--device", arguments->device, "auto | cpu | cuda | cuda:N")->capture_default_str();
  generate->add_option("--dtype", arguments->dtype, "fp32 | bf16 | fp64; default: as stored");
  generate->add_flag("--quiet", arguments->quiet, "Print the new text alone, at the end");
  generate->add_flag("--json", arguments->json, "Print the result as JSON");
  generate->callback([arguments, prompt, file] {
    if (prompt->count() + file->count() == 0) fail("generate: expected --prompt or --prompt-file");
    run(*arguments);
  });
}

}  // namespace gsa::cli
