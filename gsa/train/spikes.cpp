#include "gsa/train/spikes.h"

#include <cmath>

namespace gsa {

bool SpikeScore::add(double value) {
  ++values_;
  bool spike = !std::isfinite(value);
  if (!spike && window_.size() == kWindow) {
    double mean = 0.0;
    for (double previous : window_) mean += previous;
    mean /= static_cast<double>(kWindow);
    double variance = 0.0;
    for (double previous : window_) variance += (previous - mean) * (previous - mean);
    variance /= static_cast<double>(kWindow);
    spike = value > mean + kSigmas * std::sqrt(variance);
  }
  spikes_ += spike ? 1 : 0;
  if (std::isfinite(value)) window_.push_back(value);
  if (window_.size() > kWindow) window_.pop_front();
  return spike;
}

Json SpikeScore::state() const {
  return Json{{"window", std::vector<double>(window_.begin(), window_.end())},
              {"spikes", spikes_},
              {"values", values_}};
}

void SpikeScore::set_state(const Json& state) {
  const auto window = state.at("window").get<std::vector<double>>();
  window_.assign(window.begin(), window.end());
  spikes_ = state.at("spikes").get<int64_t>();
  values_ = state.at("values").get<int64_t>();
}

}  // namespace gsa
