#pragma once
// The adaptive budget's memory (paper 3.4): Vbar, the running mean of the statistic that the rule compares
// with.

#include <ATen/core/Tensor.h>

#include "gsa/attention/config.h"

namespace gsa {

/// Vbar of one layer. A step selects with the Vbar of the steps before it: note() remembers the step's
/// statistics and commit() moves the mean after the optimizer step, so no query's budget depends on its own
/// future.
///
/// A fresh Vbar is NaN ("unset"). While it is unset, a training step gives every query k_base keys (clamped
/// to the row), and its commit() sets Vbar to that step's mean. Evaluation with an unset Vbar is an error for
/// every rule but `fixed`.
struct Budget {
  Budget() = default;
  explicit Budget(const BudgetConfig& config);

  bool is_set() const;
  /// Remembers the mean of statistic [B,T] until commit(). Several calls (gradient accumulation) are
  /// averaged.
  void note(const at::Tensor& statistic);
  /// Moves the mean by `momentum` towards what was noted; does nothing when nothing was.
  void commit();
  /// Forgets what was noted, e.g. after a step that was given up.
  void discard();
  /// Back to a fresh Vbar.
  void unset();

  BudgetConfig config;
  at::Tensor running_mean;  // fp32 scalar, a buffer of the checkpoint

 private:
  at::Tensor pending_;
  int64_t noted_ = 0;
  mutable at::Tensor checked_;  // the running_mean that known_set_ speaks of
  mutable bool known_set_ = false;
};

}  // namespace gsa
