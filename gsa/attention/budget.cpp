#include "gsa/attention/budget.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mean.h>

#include <cmath>
#include <limits>

namespace gsa {

Budget::Budget(const BudgetConfig& budget_config)
    : config(budget_config),
      running_mean(at::full({}, std::numeric_limits<float>::quiet_NaN(), at::kFloat)) {}

bool Budget::is_set() const {
  // Reading the value waits for the device, so remember the answer while the tensor is the same one.
  if (known_set_ && checked_.is_same(running_mean)) return true;
  checked_ = running_mean;
  known_set_ = !std::isnan(running_mean.item<float>());
  return known_set_;
}

void Budget::note(const at::Tensor& statistic) {
  const at::NoGradGuard no_gradient;
  const at::Tensor mean = at::mean(statistic.detach(), at::kFloat);
  pending_ = noted_ == 0 ? mean : pending_ + mean;
  ++noted_;
}

void Budget::commit() {
  if (noted_ == 0) return;
  const at::NoGradGuard no_gradient;
  const at::Tensor mean = (pending_ / static_cast<double>(noted_)).to(running_mean.device());
  if (is_set()) {
    running_mean.add_(mean - running_mean, config.momentum);
  } else {
    running_mean.copy_(mean);
  }
  discard();
}

void Budget::discard() {
  pending_ = at::Tensor();
  noted_ = 0;
}

void Budget::unset() {
  discard();
  known_set_ = false;
  running_mean.fill_(std::numeric_limits<float>::quiet_NaN());
}

}  // namespace gsa
