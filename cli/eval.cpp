// gsa eval: what a checkpoint does on held-out text.

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/config.h"
#include "gsa/base/device.h"
#include "gsa/base/error.h"
#include "gsa/eval/evaluate.h"
#include "gsa/models/checkpoint.h"
#include "gsa/text/batches.h"

namespace gsa::cli {
namespace {

struct EvalArguments {
  std::string checkpoint, data, json, split = "held_out", packing = "windows", device = "auto", dtype, name;
  std::vector<std::string> rows;
  int64_t length = 1024, sequences = 16, batch = 4, k = 0, pictures = 0;
  uint64_t seed = 0;
};

/// The rows of the table when none are named: what the model is, and the dense reference beside a sparse one.
std::vector<std::string> default_rows(const Decoder& model, const EvalArguments& arguments) {
  if (!arguments.rows.empty()) return arguments.rows;
  if (model.config().gsa.indexer) return {"indexer", "dense"};
  return {"dense"};
}

EvalOptions row_options(const std::string& row, const Decoder& model, const EvalArguments& arguments) {
  EvalOptions options;
  options.label = arguments.name.empty() ? row : arguments.name + " " + row;
  if (row == "dense") {
    options.mode = AttentionMode::dense;
    return options;
  }
  options.selection.policy = parse_selection_policy(row);
  options.selection.seed = arguments.seed;
  if (arguments.k > 0 && row != "indexer") options.selection.k = arguments.k;
  if (!model.config().gsa.indexer) {
    if (row == "indexer")
      fail("eval: --rows indexer expected a model with an indexer, got ", arguments.checkpoint);
    if (arguments.k == 0) fail("eval: --rows ", row, " expected --k for a model without an indexer");
  }
  if (row == "indexer") {
    options.pictures = arguments.pictures;
    // Inside a shared tile later queries influence what earlier ones attend: never mixed with exact numbers.
    if (model.config().gsa.indexer->query_tile > 1) options.label += " (shared rows)";
  }
  return options;
}

std::vector<at::Tensor> read_batches(const EvalArguments& arguments, const Decoder& model) {
  TokenBatchOptions options;
  options.sequence_length = arguments.length;
  options.batch_size = std::min(arguments.batch, arguments.sequences);
  options.seed = arguments.seed;
  options.packing = arguments.packing;
  TokenBatches stream({{arguments.data, 1.0, arguments.split}}, options);
  const std::string& trained_with = model.config().tokenizer_hash;
  if (!trained_with.empty() && trained_with != stream.tokenizer_hash()) {
    fail("eval: ", arguments.data, " expected the tokenizer that ", arguments.checkpoint,
         " was trained with (", trained_with, "), got ", stream.tokenizer_hash());
  }
  if (stream.vocab_size() > model.config().vocab_size) {
    fail("eval: ", arguments.data, " expected a vocabulary of at most ", model.config().vocab_size,
         " tokens, got ", stream.vocab_size());
  }
  const int64_t sequences = std::min(arguments.sequences, stream.sequences_per_epoch());
  if (sequences < arguments.sequences) {
    std::fprintf(stderr, "warning: %s has %lld sequences of %lld tokens, not %lld\n", arguments.data.c_str(),
                 static_cast<long long>(sequences), static_cast<long long>(arguments.length),
                 static_cast<long long>(arguments.sequences));
  }
  std::vector<at::Tensor> batches;
  for (int64_t done = 0; done < sequences; done += options.batch_size) {
    batches.push_back(stream.next().slice(0, 0, std::min(options.batch_size, sequences - done)));
  }
  return batches;
}

void check_arguments(const EvalArguments& arguments) {
  const auto positive = [](const char* name, int64_t value) {
    if (value < 1) fail("eval: ", name, " expected a positive number, got ", value);
  };
  positive("--length", arguments.length);
  positive("--sequences", arguments.sequences);
  positive("--batch", arguments.batch);
  if (arguments.k < 0) fail("eval: --k expected a positive number, got ", arguments.k);
  if (!arguments.dtype.empty() && arguments.dtype != "float32" && arguments.dtype != "bfloat16") {
    fail("eval: --dtype expected float32 or bfloat16, got '", arguments.dtype, "'");
  }
}

void run_eval(const EvalArguments& arguments) {
  check_arguments(arguments);
  LoadOptions load;
  load.device = parse_device(arguments.device);
  if (!arguments.dtype.empty()) load.dtype = arguments.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  Decoder model = load_checkpoint(arguments.checkpoint, load);
  const std::vector<std::string> rows = default_rows(model, arguments);
  std::vector<EvalOptions> options;
  options.reserve(rows.size());
  for (const auto& row : rows) options.push_back(row_options(row, model, arguments));
  const std::vector<at::Tensor> batches = read_batches(arguments, model);

  std::vector<EvalResult> results;
  Json json;
  json["checkpoint"] = arguments.checkpoint;
  json["data"] = arguments.data;
  json["split"] = arguments.split;
  json["length"] = arguments.length;
  json["seed"] = arguments.seed;
  json["results"] = Json::array();
  for (const auto& option : options) {
    std::fprintf(stderr, "evaluating %s ...\n", option.label.c_str());
    results.push_back(evaluate(model, batches, option));
    json["results"].push_back(config_to_json(results.back()));
  }
  if (arguments.json == "-") {
    std::printf("%s\n", json.dump(2).c_str());
    return;
  }
  if (!arguments.json.empty()) write_json(arguments.json, json);
  std::printf("%lld sequences of %lld tokens (%s, %s)\n\n%s\n%s",
              static_cast<long long>(results.front().sequences), static_cast<long long>(arguments.length),
              arguments.data.c_str(), arguments.split.c_str(), result_table(results).c_str(),
              bucket_table(results).c_str());
}

}  // namespace

void add_eval(CLI::App& app) {
  auto arguments = std::make_shared<EvalArguments>();
  CLI::App* command = app.add_subcommand("eval",
                                         "Perplexity by position, first-token attention, sinks, activations, "
                                         "index recall and captured attention");
  command->add_option("checkpoint", arguments->checkpoint, "Checkpoint folder")
      ->required()
      ->type_name("FOLDER");
  command->add_option("--data", arguments->data, "Data folder (gsa data prepare)")
      ->required()
      ->type_name("FOLDER");
  command->add_option("--split", arguments->split, "held_out or train")->capture_default_str();
  command
      ->add_option("--rows", arguments->rows,
                   "What to compare at equal k: indexer, dense, random, window (first 4 + most recent), "
                   "oracle (highest true "
                   "attention); default: the indexer and dense attention, or dense alone")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--k", arguments->k,
                      "Keys a query for the controls (default: what the indexer's budget gives)");
  command->add_option("--length", arguments->length, "Tokens a sequence")->capture_default_str();
  command->add_option("--sequences", arguments->sequences, "Sequences in all")->capture_default_str();
  command->add_option("--batch", arguments->batch, "Sequences of one forward")->capture_default_str();
  command->add_option("--packing", arguments->packing, "windows (inside one document) or packed")
      ->capture_default_str();
  command->add_option("--seed", arguments->seed, "Which sequences, and the random control's draw")
      ->capture_default_str();
  command->add_option("--dtype", arguments->dtype, "float32 or bfloat16 (default: as stored)");
  command->add_option("--device", arguments->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--name", arguments->name, "Put before the rows' names");
  command->add_option("--pictures", arguments->pictures, "Queries whose selection goes into the JSON")
      ->capture_default_str();
  command
      ->add_option("--json", arguments->json,
                   "Also write everything as JSON; '-': print it instead of tables")
      ->type_name("FILE");
  command->callback([arguments] { run_eval(*arguments); });
}

}  // namespace gsa::cli
