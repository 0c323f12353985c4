#pragma once
// A training run from its first step, or its last checkpoint, to its end.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "gsa/train/progress.h"
#include "gsa/train/run_config.h"

namespace gsa {

/// What a run tells while it goes on.
struct TrainingEvents {
  std::function<void(const StepReport&)> step = [](const StepReport&) {};
  std::function<void(const std::string&)> notice = [](const std::string&) {};  // checkpoints and the like
  std::function<void(const std::string&)> warning = [](const std::string&) {};
  std::function<bool()> stop = [] { return false; };  // asked after every step: save and leave
};

enum class TrainingOutcome { finished, stopped };

/// Runs the stages of `config` and leaves in config.output:
///
///   checkpoints/step-*   Hugging Face folders (config.json, model.safetensors, tokenizer.json) that also
///   hold the resolved run file run.json
///                        and everything needed to go on: trainer.json, optimizer.safetensors
///   1-dense, 2-...       links to the checkpoint at the end of each stage, and `final` to the last
///   metrics.jsonl, tensorboard/
///
/// With `resume` an interrupted run goes on from its newest checkpoint (from the start when there is none),
/// and ends with the same bytes as if it had never stopped: the same weights, optimizer state, running means
/// and data. Every draw is a function of the seed and the step, so there is no random state beyond those two.
///
/// Throws Error: a configuration or data that does not fit (or not the one of the checkpoint that is
/// resumed), an output folder that already holds a run without `resume`, a loss that is not finite (naming
/// the last good checkpoint). A checkpoint that cannot be written is a warning and tried again later; at the
/// end, or when asked to stop, it is an Error.
TrainingOutcome run_training(const RunConfig& config, bool resume, const TrainingEvents& events);

}  // namespace gsa
