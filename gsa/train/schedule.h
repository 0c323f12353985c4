#pragma once
// The learning rate of a step: linear warm-up, then a cosine down to a share of the peak.

#include <cstdint>

namespace gsa {

struct LearningRateSchedule {
  double peak = 1e-3;
  int64_t warmup_steps = 0;
  int64_t steps = 1;
  /// What is left of the peak at the last step.
  double final_ratio = 0.1;

  /// The rate of 0-based step `step`. The first step of a warm-up is already above zero, the last step of the
  /// run has peak * final_ratio.
  double at(int64_t step) const;
};

}  // namespace gsa
