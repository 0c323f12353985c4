#include "gsa/train/trainer_state.h"

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/io/checkpoint_folder.h"
#include "gsa/io/safetensors.h"
#include "gsa/models/checkpoint.h"

namespace gsa {
namespace {

constexpr const char* kRunFile = "run.json";
constexpr const char* kStateFile = "trainer.json";
constexpr const char* kOptimizerFile = "optimizer.safetensors";

bool may_differ(const std::string& field) {
  return field == "output" || field == "device" || field == "log_every" || field.starts_with("checkpoints.");
}

}  // namespace

void write_training_checkpoint(const std::filesystem::path& folder, Decoder& model, const AdamW& optimizer,
                               const TrainerState& state, const RunConfig& config,
                               const std::filesystem::path& tokenizer_file) {
  save_checkpoint(model, folder);
  write_file(folder / "tokenizer.json", read_file(tokenizer_file));
  write_safetensors(folder / kOptimizerFile, optimizer.state());
  write_json(folder / kRunFile, config_to_json(config));
  write_json(folder / kStateFile, Json{{"format", 1},
                                       {"step", state.step},
                                       {"stage", state.stage},
                                       {"stage_step", state.stage_step},
                                       {"tokens", state.tokens},
                                       {"data", state.data},
                                       {"data_hash", state.data_hash},
                                       {"loss_spikes", state.loss_spikes.state()},
                                       {"gradient_spikes", state.gradient_spikes.state()}});
}

TrainerState read_trainer_state(const std::filesystem::path& folder) {
  const auto path = checkpoint_file(folder, kStateFile);
  const Json json = read_json(path);
  try {
    if (json.at("format") != 1) fail(path.string(), ": expected format 1, got ", json.at("format").dump());
    TrainerState state;
    state.step = json.at("step");
    state.stage = json.at("stage");
    state.stage_step = json.at("stage_step");
    state.tokens = json.at("tokens");
    state.data = json.at("data");
    state.data_hash = json.at("data_hash");
    state.loss_spikes.set_state(json.at("loss_spikes"));
    state.gradient_spikes.set_state(json.at("gradient_spikes"));
    return state;
  } catch (const Json::exception& error) {
    fail(path.string(), ": ", error.what());
  }
}

void load_optimizer(const std::filesystem::path& folder, AdamW& optimizer) {
  const SafetensorsFile file(checkpoint_file(folder, kOptimizerFile));
  optimizer.load_state([&](const std::string& name) { return file.tensor(name); });
}

void check_same_run(const std::filesystem::path& folder, const RunConfig& config) {
  const Json saved = read_json(checkpoint_file(folder, kRunFile));
  std::string names;
  for (const auto& field : differing_fields(saved, config_to_json(config))) {
    if (!may_differ(field)) names += (names.empty() ? "" : ", ") + field;
  }
  if (names.empty()) return;
  fail("resume: ", folder.string(), " was made with another run configuration (", names,
       "); restore it, or start anew in another output folder with \"checkpoint\": \"", folder.string(),
       "\"");
}

}  // namespace gsa
