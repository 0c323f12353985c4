#pragma once
// Checkpoints as Hugging Face folders: config.json, model.safetensors (or shards with an index),
// tokenizer.json.

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>

#include "gsa/models/decoder.h"

namespace gsa {

struct LoadOptions {
  at::Device device = at::kCPU;
  std::optional<at::ScalarType> dtype;  // absent: as stored. Running means stay fp32.
};

/// Loads a gated_sparse_attention or a plain Llama folder. Throws Error naming the tensor that is missing,
/// unexpected or of another shape. Parameters do not require gradients (see Decoder::train_only).
Decoder load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options = {});

/// Writes config.json and the tensors (sharded above `max_shard_bytes`) atomically per file; tensors in their
/// dtype.
void save_checkpoint(Decoder& model, const std::filesystem::path& folder,
                     int64_t max_shard_bytes = 5'000'000'000);

/// A dense model plus gates and a fresh indexer, as `gsa` describes them; gates get identity = true, so the
/// result computes the same logits under dense attention.
Decoder convert_dense(Decoder dense, const GsaConfig& gsa, uint64_t seed);

/// The model with a fresh indexer and budget as `gsa` describes them, in place of its own if it has one; its
/// gates and everything else stay as they are.
Decoder add_indexer(Decoder model, const GsaConfig& gsa, uint64_t seed);

}  // namespace gsa
