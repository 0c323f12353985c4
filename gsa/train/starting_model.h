#pragma once
// The model a run starts from, and whether the data fits it.

#include <c10/core/Device.h>

#include <filesystem>
#include <string>

#include "gsa/models/decoder.h"
#include "gsa/train/run_config.h"

namespace gsa {

/// Checks the data folders against the model: one tokenizer, the one the model was trained with, and a
/// vocabulary that fits. Writes the tokenizer's hash into config.model and, where it names none, the token
/// that ends the data's documents as the one that ends a text. Throws Error.
/// Returns a hash of what the data folders hold, by which a resumed run knows them again.
std::string check_data(RunConfig& config);

/// Random weights, or the configured checkpoint with what the run adds to it: a dense model gets gates
/// (identity) and a fresh indexer where config.model.gsa has them; a gated model gets a fresh indexer; a
/// model that has both gets the run's budget and kept tokens. fp32 on `device`. Throws Error.
Decoder starting_model(const RunConfig& config, at::Device device);

/// A checkpoint's model, fp32 on `device`, in memory of its own.
Decoder load_for_training(const std::filesystem::path& folder, at::Device device);

/// Bytes in use: resident memory of the process, or the allocator's on CUDA.
int64_t used_memory(at::Device device);

}  // namespace gsa
