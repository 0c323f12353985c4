#pragma once
// A training run as one file: the model, the data, and the stages in their order.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "gsa/models/config.h"
#include "gsa/text/batches.h"

namespace gsa {

/// One stage. `kind`: dense | indexer_warmup | sparse (semantics, "Training").
struct StageConfig {
  std::string kind = "dense";
  int64_t steps = 1000;
  double learning_rate = 1e-3;
  int64_t warmup_steps = 0;
  double final_ratio = 0.1;  // what the cosine leaves of the rate at the last step
  int64_t sequence_length = 1024;
  int64_t batch_size = 8;          // sequences of one forward
  int64_t accumulation = 1;        // forwards of one step
  double index_loss_weight = 1.0;  // sparse: of the index KL beside the cross entropy
  int64_t index_queries =
      0;  // queries of a sequence that the index KL looks at, drawn anew for every step and layer; 0: all

  int64_t tokens_per_step() const { return sequence_length * batch_size * accumulation; }
  template <class Visitor>
  void fields(Visitor&& field) {
    field("kind", kind);
    field("steps", steps);
    field("learning_rate", learning_rate);
    field("warmup_steps", warmup_steps);
    field("final_ratio", final_ratio);
    field("sequence_length", sequence_length);
    field("batch_size", batch_size);
    field("accumulation", accumulation);
    field("index_loss_weight", index_loss_weight);
    field("index_queries", index_queries);
  }
};

struct OptimizerConfig {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;  // of matrices; norms, biases and scalars have none
  double clip_norm = 1.0;     // of the model's gradient and of the indexers', each by itself; 0: no clipping
  double indexer_factor = 10.0;  // the indexers' learning rate over the model's, in the sparse stage
  template <class Visitor>
  void fields(Visitor&& field) {
    field("beta1", beta1);
    field("beta2", beta2);
    field("epsilon", epsilon);
    field("weight_decay", weight_decay);
    field("clip_norm", clip_norm);
    field("indexer_factor", indexer_factor);
  }
};

struct DataConfig {
  std::vector<TokenSource> sources;
  std::string packing = "packed";  // packed | windows
  template <class Visitor>
  void fields(Visitor&& field) {
    field("sources", sources);
    field("packing", packing);
  }
};

struct CheckpointConfig {
  int64_t every = 500;  // steps; the end of a stage is always saved
  int64_t keep = 3;     // the newest ones; those at the end of a stage stay beside them
  double patience =
      600;  // seconds to keep trying when the last save of a run or stage fails, for want of space say
  template <class Visitor>
  void fields(Visitor&& field) {
    field("every", every);
    field("keep", keep);
    field("patience", patience);
  }
};

struct RunConfig {
  std::string output;  // folder of checkpoints, metrics.jsonl and tensorboard/
  uint64_t seed = 1;   // of the weights, the data's order and every draw of a step
  std::string device = "auto";
  std::string dtype = "float32";  // float32 | bfloat16: of products and attention; parameters are fp32
  bool checkpoint_activations = false;
  std::string model_config;  // a file of configs/models that `model` is laid over
  std::string checkpoint;    // a checkpoint folder to start from instead of random weights; `model` is laid
                             // over its configuration
  DecoderConfig model;
  DataConfig data;
  std::vector<StageConfig> stages;
  OptimizerConfig optimizer;
  CheckpointConfig checkpoints;
  int64_t log_every = 10;  // steps between two lines of metrics.jsonl

  int64_t total_steps() const;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("output", output);
    field("seed", seed);
    field("device", device);
    field("dtype", dtype);
    field("checkpoint_activations", checkpoint_activations);
    field("model_config", model_config);
    field("checkpoint", checkpoint);
    field("model", model);
    field("data", data);
    field("stages", stages);
    field("optimizer", optimizer);
    field("checkpoints", checkpoints);
    field("log_every", log_every);
  }
};

/// Reads a run file (JSON with comments), lays its `model` over `model_config` or the configuration of
/// `checkpoint`, applies `sets`
/// ("a.b=c") and checks everything. `model_config` is looked up from the working folder, then beside the run
/// file. Throws Error.
RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& sets);

/// Checks values and combinations; throws Error naming the field ("stages.1.kind: expected ..., got ...").
void check_config(const RunConfig& config);

/// Why a sparse stage over sequences of `length` would attend densely whatever the scores (every k_t >= t +
/// 1), or nothing.
std::optional<std::string> dense_in_disguise(const GsaConfig& config, int64_t length);

/// The dotted names of the fields that differ between two configurations.
std::vector<std::string> differing_fields(const Json& a, const Json& b);

}  // namespace gsa
