#pragma once
// The line a person watches while a run goes on.

#include <cstdint>
#include <optional>
#include <string>

namespace gsa {

/// What a run knows after a step.
struct StepReport {
  std::string stage;
  int64_t step = 0;         // of the whole run, counted from 1
  int64_t total_steps = 0;  // of the whole run
  int64_t stage_step = 0;
  int64_t stage_steps = 0;
  double learning_rate = 0.0;
  double loss = 0.0;                    // what is minimised
  std::optional<double> cross_entropy;  // absent in the indexer's warm-up
  std::optional<double> index_kl;       // mean over layers and queries, in nats
  std::optional<double>
      index_share;  // index_kl over the KL of a uniform guess: 1 knows nothing, 0 everything
  std::optional<double> selected_keys;  // mean keys a row holds
  double gradient_norm = 0.0;           // of the model, before clipping
  double indexer_gradient_norm = 0.0;
  double loss_spike_score = 0.0;
  double gradient_spike_score = 0.0;
  int64_t tokens = 0;  // seen so far
  double tokens_per_second = 0.0;
  double remaining_seconds = 0.0;
  int64_t memory_bytes = 0;  // of the process; of the allocator on CUDA
};

/// "dense 120/400  loss 3.1234  1.2k tokens/s  812 MiB  ETA 3m20s", with "KL 0.812 (34% of uniform)" where
/// there is an index loss.
std::string progress_line(const StepReport& report);

/// "2h05m", "3m20s", "12s".
std::string short_duration(double seconds);

/// Resident memory of this process in bytes.
int64_t resident_memory();

}  // namespace gsa
