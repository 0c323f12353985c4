#pragma once
// Timing and peak memory of one call, on any device: what every benchmark of ours shares.

#include <ATen/core/Tensor.h>

#include <functional>

namespace gsa::testing {

struct Timing {
  double median_ms = 0, min_ms = 0, max_ms = 0;
  int iterations = 0;
};

struct TimingOptions {
  int warmup = 3;
  int iterations = 20;
  double budget_seconds = 3;  // fewer iterations (at least one) when they would take longer than this
};

/// Runs `call` repeatedly. Before every run a buffer larger than twice the last-level cache is written, so
/// that the inputs come from memory. On a GPU the time is taken by events on the current stream, with the
/// flush still running while the call is issued: launch overhead hides behind it as in a captured graph.
Timing time_call(const at::Device& device, const TimingOptions& options, const std::function<void()>& call);

/// MiB that `call` allocates at its peak beyond what is allocated now. On the CPU: growth of the resident
/// set.
double peak_memory_mib(const at::Device& device, const std::function<void()>& call);

}  // namespace gsa::testing
