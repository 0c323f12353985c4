#include "gsa/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <vector>

#include "gsa/base/error.h"

namespace gsa {
namespace {

int32_t likeliest(std::span<const double> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// Tokens that may be drawn, likeliest first.
std::vector<int32_t> candidates(std::span<const double> logits, int64_t top_k) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t kept = top_k > 0 ? std::min(order.size(), static_cast<size_t>(top_k)) : order.size();
  std::partial_sort(
      order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(),
      [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
  order.resize(kept);
  return order;
}

}  // namespace

Sampler::Sampler(const SamplingConfig& config) : config_(config), generator_(config.seed) {
  if (!(config.temperature >= 0.0)) fail("temperature: expected zero or more, got ", config.temperature);
  if (config.top_k < 0) fail("top_k: expected zero or more, got ", config.top_k);
  if (!(config.top_p > 0.0 && config.top_p <= 1.0))
    fail("top_p: expected a number in (0, 1], got ", config.top_p);
}

int32_t Sampler::operator()(const at::Tensor& logits) {
  const at::Tensor values = logits.detach().to(at::kCPU, at::kDouble).contiguous();
  const std::span<const double> row(values.const_data_ptr<double>(), static_cast<size_t>(values.numel()));
  if (std::any_of(row.begin(), row.end(), [](double value) { return std::isnan(value); })) {
    fail("generate: the model's logits are not numbers (NaN); are its weights sound?");
  }
  if (config_.temperature == 0.0) return likeliest(row);

  const std::vector<int32_t> order = candidates(row, config_.top_k);
  std::vector<double> weight(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    weight[i] = std::exp((row[order[i]] - row[order[0]]) / config_.temperature);
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  double kept = 0.0;
  size_t count = 0;
  while (count < weight.size() && (count == 0 || kept < config_.top_p * total)) kept += weight[count++];
  // 53 random bits: a uniform number whose value does not depend on the standard library's distributions.
  double left = static_cast<double>(generator_() >> 11) * 0x1.0p-53 * kept;
  size_t chosen = 0;
  while (chosen + 1 < count && left >= weight[chosen]) left -= weight[chosen++];
  return order[chosen];
}

}  // namespace gsa
