#include "gsa/train/run_config.h"

#include <algorithm>

#include "gsa/base/config.h"
#include "gsa/base/error.h"

namespace gsa {
namespace {

void require(bool condition, const std::string& field, const char* expected, const auto& got) {
  if (!condition) fail(field, ": expected ", expected, ", got ", got);
}

/// The first of path, folder/path, folder/../path, ... that exists.
std::filesystem::path find_upwards(const std::filesystem::path& path, std::filesystem::path folder) {
  if (path.is_absolute() || std::filesystem::exists(path)) return path;
  for (folder = std::filesystem::absolute(folder);; folder = folder.parent_path()) {
    if (std::filesystem::exists(folder / path)) return folder / path;
    if (folder == folder.parent_path()) return path;
  }
}

/// Recursive: a value of `over` replaces the one in `base`, objects merge. (JSON merge-patch drops nulls; a
/// null here means "absent indexer".)
void lay_over(Json& base, const Json& over) {
  for (const auto& [key, value] : over.items()) {
    if (value.is_object() && base.contains(key) && base[key].is_object()) {
      lay_over(base[key], value);
    } else {
      base[key] = value;
    }
  }
}

bool names_top_level(const std::string& assignment, std::string_view field) {
  return assignment.substr(0, assignment.find('=')) == field;
}

/// What `model` is laid over: the named file, the checkpoint's configuration, or the defaults.
DecoderConfig base_model(const std::string& model_config, const std::string& checkpoint,
                         const std::filesystem::path& run_file) {
  if (!checkpoint.empty()) {
    const auto file = std::filesystem::path(checkpoint) / "config.json";
    return decoder_config_from_hf(read_json(file), file.string());
  }
  if (!model_config.empty()) return read_model_config(find_upwards(model_config, run_file.parent_path()));
  return {};
}

void check_stage(const StageConfig& stage, const std::string& name, const RunConfig& config) {
  require(stage.kind == "dense" || stage.kind == "indexer_warmup" || stage.kind == "sparse", name + ".kind",
          "'dense', 'indexer_warmup' or 'sparse'", "'" + stage.kind + "'");
  require(stage.kind == "dense" || config.model.gsa.indexer.has_value(), name + ".kind",
          "a model with an indexer (model.gsa.indexer) for this stage",
          "'" + stage.kind + "' and a model without one");
  require(stage.steps >= 1, name + ".steps", "at least 1", stage.steps);
  require(stage.learning_rate > 0, name + ".learning_rate", "a positive number", stage.learning_rate);
  require(stage.warmup_steps >= 0, name + ".warmup_steps", "0 or more", stage.warmup_steps);
  require(stage.final_ratio >= 0 && stage.final_ratio <= 1, name + ".final_ratio", "a number from 0 to 1",
          stage.final_ratio);
  require(stage.sequence_length >= 2, name + ".sequence_length", "at least 2", stage.sequence_length);
  require(stage.sequence_length <= config.model.max_position_embeddings, name + ".sequence_length",
          "at most model.max_position_embeddings", stage.sequence_length);
  require(stage.batch_size >= 1, name + ".batch_size", "at least 1", stage.batch_size);
  require(stage.accumulation >= 1, name + ".accumulation", "at least 1", stage.accumulation);
  require(stage.index_loss_weight >= 0, name + ".index_loss_weight", "0 or more", stage.index_loss_weight);
  require(stage.index_queries >= 0, name + ".index_queries", "0 (all) or more", stage.index_queries);
}

}  // namespace

int64_t RunConfig::total_steps() const {
  int64_t total = 0;
  for (const auto& stage : stages) total += stage.steps;
  return total;
}

RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& sets) {
  const std::string source = path.string();
  Json json = read_json(path);
  if (!json.is_object()) fail(source, ": expected an object, got ", json.type_name());
  // What the model is laid over must be known before anything is laid.
  for (const char* field : {"model_config", "checkpoint"}) {
    if (!json.contains(field)) json[field] = "";
    for (const auto& assignment : sets) {
      if (names_top_level(assignment, field)) set_json_path(json, assignment);
    }
    if (!json[field].is_string()) fail(source, ": ", field, ": expected a string, got ", json[field].dump());
  }
  DecoderConfig model = base_model(json["model_config"], json["checkpoint"], path);
  Json laid = config_to_json(model);
  if (json.contains("model")) {
    if (!json["model"].is_object()) fail(source, ": model: expected an object, got ", json["model"].dump());
    lay_over(laid, json["model"]);
  }
  json["model"] = laid;
  RunConfig config;
  config_from_json(json, config, source);
  for (const auto& assignment : sets) config_set(config, assignment);
  check_config(config);
  return config;
}

void check_config(const RunConfig& config) {
  require(!config.output.empty(), "output", "a folder", "none");
  require(config.dtype == "float32" || config.dtype == "bfloat16", "dtype", "'float32' or 'bfloat16'",
          "'" + config.dtype + "'");
  require(!config.data.sources.empty(), "data.sources", "at least one data folder", "none");
  require(!config.stages.empty(), "stages", "at least one stage", "none");
  require(config.log_every >= 1, "log_every", "at least 1", config.log_every);
  require(config.checkpoints.every >= 1, "checkpoints.every", "at least 1", config.checkpoints.every);
  require(config.checkpoints.keep >= 1, "checkpoints.keep", "at least 1", config.checkpoints.keep);
  require(config.checkpoints.patience >= 0, "checkpoints.patience", "0 or more seconds",
          config.checkpoints.patience);
  const auto& optimizer = config.optimizer;
  require(optimizer.beta1 >= 0 && optimizer.beta1 < 1, "optimizer.beta1", "a number in [0, 1)",
          optimizer.beta1);
  require(optimizer.beta2 >= 0 && optimizer.beta2 < 1, "optimizer.beta2", "a number in [0, 1)",
          optimizer.beta2);
  require(optimizer.epsilon > 0, "optimizer.epsilon", "a positive number", optimizer.epsilon);
  require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more", optimizer.weight_decay);
  require(optimizer.clip_norm >= 0, "optimizer.clip_norm", "0 or more", optimizer.clip_norm);
  require(optimizer.indexer_factor > 0, "optimizer.indexer_factor", "a positive number",
          optimizer.indexer_factor);
  check_config(config.model);
  for (size_t i = 0; i < config.stages.size(); ++i)
    check_stage(config.stages[i], "stages." + std::to_string(i), config);
}

std::optional<std::string> dense_in_disguise(const GsaConfig& config, int64_t length) {
  if (!config.indexer) return std::nullopt;
  const int64_t smallest = smallest_budget(config.budget);
  if (smallest < length) return std::nullopt;
  return "every query may attend to all it sees (k >= " + std::to_string(smallest) + ", sequences of " +
         std::to_string(length) + "): this stage is dense in disguise; use longer sequences or a smaller k";
}

std::vector<std::string> differing_fields(const Json& a, const Json& b) {
  std::vector<std::string> names;
  const Json difference = Json::diff(a, b);
  for (const auto& change : difference) {
    std::string name = change.at("path").get<std::string>().substr(1);
    std::replace(name.begin(), name.end(), '/', '.');
    names.push_back(name);
  }
  return names;
}

}  // namespace gsa
