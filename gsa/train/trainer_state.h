#pragma once
// What a checkpoint holds beside the model, so that a run can go on from it.

#include <cstdint>
#include <filesystem>
#include <string>

#include "gsa/base/json.h"
#include "gsa/models/decoder.h"
#include "gsa/train/optimizer.h"
#include "gsa/train/run_config.h"
#include "gsa/train/spikes.h"

namespace gsa {

/// Where a run stands after a step.
struct TrainerState {
  int64_t step = 0;  // of the whole run
  int64_t stage = 0;
  int64_t stage_step = 0;
  int64_t tokens = 0;
  Json data;              // TokenBatches::state() of the stage
  std::string data_hash;  // of the data folders' contents (check_data)
  SpikeScore loss_spikes, gradient_spikes;
};

/// Fills a checkpoint folder: the model as a Hugging Face folder with its tokenizer, run.json, trainer.json
/// and optimizer.safetensors.
void write_training_checkpoint(const std::filesystem::path& folder, Decoder& model, const AdamW& optimizer,
                               const TrainerState& state, const RunConfig& config,
                               const std::filesystem::path& tokenizer_file);

/// Reads trainer.json. Throws Error when it is missing or malformed.
TrainerState read_trainer_state(const std::filesystem::path& folder);

/// Copies the optimizer's state from a checkpoint. Throws Error when a tensor is missing or has another
/// shape.
void load_optimizer(const std::filesystem::path& folder, AdamW& optimizer);

/// Throws Error, naming the fields, unless the run of `folder` was configured like `config` in everything
/// that decides its numbers (output, device, checkpoints and log_every may differ).
void check_same_run(const std::filesystem::path& folder, const RunConfig& config);

}  // namespace gsa
