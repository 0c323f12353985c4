#pragma once
// Attention with selection beside dense attention, in one process on the same inputs (`gsa bench attention`).

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "gsa/base/json.h"
#include "gsa/testing/attention_inputs.h"
#include "gsa/testing/timing.h"

namespace gsa::testing {

struct AttentionBenchOptions {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> lengths;
  std::vector<int64_t> batches;  // of decode; the other phases are measured with one sequence
  std::vector<int64_t> chunks;   // of the phase `chunk`: so many new tokens, the last of `length`
  std::vector<std::string> phases, activations;
  std::vector<std::string> index_keys = {"compute"};  // of decode's cache: compute (dtype) or float8_e4m3fn
  AttentionShape shape;  // heads and dimensions; batch, queries and keys are set per measurement
  int64_t k = 2048, keep_first = 4, keep_recent = 128;
  bool text_overlap = true;      // else independent queries
  Overlap overlap{2.3, 3.2};     // what text_overlap aims at
  int64_t dense_limit = 262144;  // longer dense prefills are extrapolated by their quadratic law
  int64_t reference_limit = 0;   // longest prefill of the reference
  TimingOptions timing;
};

/// One row per measurement, as soon as it is there: name (dense, reference, exact, shared), phase (prefill,
/// chunk, decode), activation, index_keys, length, queries, batch, ms_median, ms_min, ms_max,
/// speedup_vs_dense, parts {selection, attention} in ms (the two ops by themselves; a step of decoding is one
/// op), tflops, gbytes_per_s, peak_memory_mib; and what else the row needs to be read rightly (backend,
/// extrapolated, overlap). A call that would take several times
/// the time of a measurement, judged by the last smaller one, is left out: its numbers are null and
/// skipped_at_ms says what was expected.
void bench_attention(const AttentionBenchOptions& options, const std::function<void(const Json&)>& report);

}  // namespace gsa::testing
