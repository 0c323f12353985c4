#include "gsa/train/trainer.h"

#include <ATen/Context.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <thread>

#include "gsa/base/config.h"
#include "gsa/base/device.h"
#include "gsa/base/error.h"
#include "gsa/models/checkpoint.h"
#include "gsa/text/token_shards.h"
#include "gsa/train/checkpoints.h"
#include "gsa/train/metrics.h"
#include "gsa/train/optimizer.h"
#include "gsa/train/schedule.h"
#include "gsa/train/stage_step.h"
#include "gsa/train/starting_model.h"
#include "gsa/train/trainer_state.h"

namespace gsa {
namespace {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// A number that depends on all three (splitmix64 steps).
uint64_t mix(uint64_t seed, uint64_t a, uint64_t b) {
  uint64_t x = seed;
  for (uint64_t part : {a, b}) {
    x += 0x9E3779B97F4A7C15u + part;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
  }
  return x;
}

std::set<int64_t> stage_ends(const RunConfig& config) {
  std::set<int64_t> ends;
  int64_t step = 0;
  for (const auto& stage : config.stages) ends.insert(step += stage.steps);
  return ends;
}

/// Everything that lives as long as one stage.
struct StageRun {
  StageRun(Decoder& model, const RunConfig& config, int64_t index)
      : stage(config.stages[static_cast<size_t>(index)]),
        step(model, stage, config),
        optimizer(parameter_groups(step.trained_parameters(), config.optimizer.weight_decay,
                                   stage.kind == "sparse" ? config.optimizer.indexer_factor : 1.0),
                  {config.optimizer.beta1, config.optimizer.beta2, config.optimizer.epsilon}),
        schedule{stage.learning_rate, stage.warmup_steps, stage.steps, stage.final_ratio},
        batches(config.data.sources, {.sequence_length = stage.sequence_length,
                                      .batch_size = stage.batch_size,
                                      .seed = mix(config.seed, 0xDA7A, static_cast<uint64_t>(index)),
                                      .packing = config.data.packing}) {
    for (const auto& named : step.trained_parameters()) {
      (is_indexer_parameter(named.first) ? indexer_parameters : model_parameters).push_back(named);
    }
  }

  const StageConfig& stage;
  StageStep step;
  AdamW optimizer;
  LearningRateSchedule schedule;
  TokenBatches batches;
  NamedTensors model_parameters, indexer_parameters;
  double seconds_per_token = 0.0;
};

class Run {
 public:
  Run(const RunConfig& config, bool resume, const TrainingEvents& events);
  TrainingOutcome run();

 private:
  void open_stage();
  void take_step();
  void check_finite(const char* what, double value) const;
  void report(const StepLosses& losses, double model_norm, double indexer_norm, double seconds);
  void write_metrics(const StepReport& report);
  bool save(bool must);
  std::string last_checkpoint() const;

  RunConfig config_;
  TrainingEvents events_;
  at::Device device_;
  Checkpoints checkpoints_;
  std::optional<Decoder> model_;
  std::unique_ptr<StageRun> stage_;
  std::unique_ptr<MetricsLog> metrics_;
  TrainerState state_;
  std::optional<std::filesystem::path> resumed_from_;
  int64_t saved_step_ = -1;
  bool save_failed_ = false;
};

Run::Run(const RunConfig& config, bool resume, const TrainingEvents& events)
    : config_(config),
      events_(events),
      device_(parse_device(config.device)),
      checkpoints_(config.output, config.checkpoints.keep, stage_ends(config)) {
  if (device_.is_cuda()) {
    ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setSDPUseCuDNN(false);  // its backward adds in any order
  }
  const std::string data_hash = check_data(config_);
  const auto latest = checkpoints_.latest();
  if (latest && !resume)
    fail(config_.output, ": holds a run already (", latest->string(),
         "); pass --resume to go on, or choose another output");
  if (latest) {
    check_same_run(*latest, config_);
    state_ = read_trainer_state(*latest);
    if (state_.data_hash != data_hash) {
      fail("resume: the data folders do not hold what ", latest->string(),
           " was trained on; restore them, or ", "start anew in another output folder");
    }
    model_.emplace(load_for_training(*latest, device_));
    resumed_from_ = latest;
    saved_step_ = state_.step;
    events_.notice("resuming from " + latest->string());
  } else {
    model_.emplace(starting_model(config_, device_));
    state_.data_hash = data_hash;
  }
  metrics_ = std::make_unique<MetricsLog>(config_.output, state_.step);
}

void Run::open_stage() {
  stage_.reset();
  stage_ = std::make_unique<StageRun>(*model_, config_, state_.stage);
  if (resumed_from_) {
    load_optimizer(*resumed_from_, stage_->optimizer);
    stage_->batches.set_state(state_.data);
    resumed_from_.reset();
  } else {
    state_.stage_step = 0;
    state_.loss_spikes = {};
    state_.gradient_spikes = {};
  }
  if (stage_->stage.kind == "sparse") {
    if (const auto reason = dense_in_disguise(model_->config().gsa, stage_->stage.sequence_length)) {
      events_.warning("stage " + std::to_string(state_.stage + 1) + " (sparse): " + *reason);
    }
    if (const auto& indexer = model_->config().gsa.indexer; indexer && indexer->query_tile > 1) {
      events_.warning("stage " + std::to_string(state_.stage + 1) +
                      " (sparse): with query_tile > 1 a query's keys depend on later queries of its tile; "
                      "the training loss may see the future");
    }
  }
}

TrainingOutcome Run::run() {
  const auto stages = static_cast<int64_t>(config_.stages.size());
  while (state_.stage < stages) {
    open_stage();
    while (state_.stage_step < stage_->stage.steps) {
      take_step();
      const bool stage_done = state_.stage_step == stage_->stage.steps;
      const bool stopping = events_.stop();
      const bool due = state_.step % config_.checkpoints.every == 0 || save_failed_;
      if (due || stage_done || stopping) save(/*must=*/stage_done || stopping);
      if (stopping && !(stage_done && state_.stage + 1 == stages)) return TrainingOutcome::stopped;
    }
    const std::string name = std::to_string(state_.stage + 1) + "-" + stage_->stage.kind;
    checkpoints_.link(name, state_.step);
    if (++state_.stage == stages) checkpoints_.link("final", state_.step);
  }
  return TrainingOutcome::finished;
}

void Run::take_step() {
  const double begin = seconds_now();
  const bool measure = (state_.step + 1) % config_.log_every == 0 || state_.stage_step == 0;
  for (int64_t micro = 0; micro < stage_->stage.accumulation; ++micro) {
    const at::Tensor tokens = stage_->batches.next().to(device_);
    stage_->step.accumulate(
        tokens, mix(config_.seed, static_cast<uint64_t>(state_.step), static_cast<uint64_t>(micro)), measure);
  }
  const StepLosses losses = stage_->step.take_losses();
  check_finite("loss", losses.loss);
  // Each by itself: the size of the index KL's gradient must not decide how far the model moves.
  const double model_norm = clip_gradients(stage_->model_parameters, config_.optimizer.clip_norm);
  const double indexer_norm = clip_gradients(stage_->indexer_parameters, config_.optimizer.clip_norm);
  check_finite("gradient norm", model_norm);
  check_finite("indexer's gradient norm", indexer_norm);
  stage_->optimizer.step(stage_->schedule.at(state_.stage_step));
  stage_->optimizer.zero_gradients();
  model_->commit_statistics();
  state_.data = stage_->batches.state();
  ++state_.step;
  ++state_.stage_step;
  state_.tokens += stage_->stage.tokens_per_step();
  report(losses, model_norm, indexer_norm, seconds_now() - begin);
}

void Run::check_finite(const char* what, double value) const {
  if (std::isfinite(value)) return;
  fail("step ", state_.step + 1, " (", stage_->stage.kind, "): the ", what, " is ", value, "; ",
       last_checkpoint(), ". A lower learning rate, a longer warm-up or stronger clipping may help");
}

std::string Run::last_checkpoint() const {
  const auto latest = checkpoints_.latest();
  return latest ? "the last good checkpoint is " + latest->string()
                : std::string("there is no checkpoint yet");
}

void Run::report(const StepLosses& losses, double model_norm, double indexer_norm, double seconds) {
  state_.loss_spikes.add(losses.loss);
  state_.gradient_spikes.add(stage_->model_parameters.empty() ? indexer_norm : model_norm);
  const double per_token = seconds / static_cast<double>(stage_->stage.tokens_per_step());
  stage_->seconds_per_token =
      stage_->seconds_per_token == 0.0 ? per_token : 0.9 * stage_->seconds_per_token + 0.1 * per_token;
  int64_t remaining = (stage_->stage.steps - state_.stage_step) * stage_->stage.tokens_per_step();
  for (size_t i = static_cast<size_t>(state_.stage) + 1; i < config_.stages.size(); ++i) {
    remaining += config_.stages[i].steps * config_.stages[i].tokens_per_step();
  }
  StepReport report;
  report.stage = stage_->stage.kind;
  report.step = state_.step;
  report.total_steps = config_.total_steps();
  report.stage_step = state_.stage_step;
  report.stage_steps = stage_->stage.steps;
  report.learning_rate = stage_->schedule.at(state_.stage_step - 1);
  report.loss = losses.loss;
  report.cross_entropy = losses.cross_entropy;
  report.index_kl = losses.index_kl;
  if (losses.index_kl && losses.uniform_kl && *losses.uniform_kl > 0)
    report.index_share = *losses.index_kl / *losses.uniform_kl;
  report.selected_keys = losses.selected_keys;
  report.gradient_norm = model_norm;
  report.indexer_gradient_norm = indexer_norm;
  report.loss_spike_score = state_.loss_spikes.score();
  report.gradient_spike_score = state_.gradient_spikes.score();
  report.tokens = state_.tokens;
  report.tokens_per_second = 1.0 / stage_->seconds_per_token;
  report.remaining_seconds = static_cast<double>(remaining) * stage_->seconds_per_token;
  report.memory_bytes = used_memory(device_);
  if (state_.step % config_.log_every == 0 || state_.stage_step == stage_->stage.steps) write_metrics(report);
  events_.step(report);
}

void Run::write_metrics(const StepReport& report) {
  const auto time =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  Json record{{"step", report.step}, {"time", time}, {"stage", report.stage}, {"loss", report.loss}};
  const auto add = [&](const char* name, const std::optional<double>& value) {
    if (value) record[name] = *value;
  };
  add("cross_entropy", report.cross_entropy);
  add("index_kl", report.index_kl);
  add("index_kl_share_of_uniform", report.index_share);
  add("selected_keys", report.selected_keys);
  record["learning_rate"] = report.learning_rate;
  if (!stage_->model_parameters.empty()) record["gradient_norm"] = report.gradient_norm;
  if (!stage_->indexer_parameters.empty()) record["indexer_gradient_norm"] = report.indexer_gradient_norm;
  record["loss_spike_score"] = report.loss_spike_score;
  record["gradient_spike_score"] = report.gradient_spike_score;
  record["tokens"] = report.tokens;
  record["tokens_per_second"] = report.tokens_per_second;
  record["memory_mib"] = static_cast<double>(report.memory_bytes) / (1024.0 * 1024.0);
  metrics_->append(record);
}

/// False when it could not be written and need not be.
bool Run::save(bool must) {
  if (saved_step_ == state_.step) return true;
  const double deadline = seconds_now() + config_.checkpoints.patience;
  const auto tokenizer = std::filesystem::path(config_.data.sources.front().path) / "tokenizer.json";
  for (;;) {
    try {
      const auto path = checkpoints_.save(state_.step, [&](const std::filesystem::path& folder) {
        write_training_checkpoint(folder, *model_, stage_->optimizer, state_, config_, tokenizer);
      });
      events_.notice("saved " + path.string());
      saved_step_ = state_.step;
      save_failed_ = false;
      return true;
    } catch (const std::exception& error) {
      save_failed_ = true;
      const std::string message = std::string("cannot save step ") + std::to_string(state_.step) + ": " +
                                  error.what() + "; " + last_checkpoint();
      if (must && seconds_now() >= deadline) fail(message);
      events_.warning(message + (must ? "; trying again in a while" : "; training goes on"));
      if (!must) return false;
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(std::min(5.0, config_.checkpoints.patience)));
  }
}

}  // namespace

TrainingOutcome run_training(const RunConfig& config, bool resume, const TrainingEvents& events) {
  check_config(config);
  return Run(config, resume, events).run();
}

}  // namespace gsa
