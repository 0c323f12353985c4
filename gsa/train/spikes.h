#pragma once
// How often a training curve jumps.

#include <cstdint>
#include <deque>

#include "gsa/base/json.h"

namespace gsa {

/// The spike score: a value above mean + 6 standard deviations of the previous 128 values is a spike; the
/// score is spikes / values. The first 128 values are never spikes, for want of a history. Values that are
/// not finite are spikes and do not enter the history.
class SpikeScore {
 public:
  static constexpr size_t kWindow = 128;
  static constexpr double kSigmas = 6.0;

  /// Adds the next value; true when it is a spike.
  bool add(double value);
  int64_t spikes() const { return spikes_; }
  double score() const {
    return values_ == 0 ? 0.0 : static_cast<double>(spikes_) / static_cast<double>(values_);
  }

  /// Everything needed to go on after a restart, bit for bit.
  Json state() const;
  void set_state(const Json& state);

 private:
  std::deque<double> window_;
  int64_t spikes_ = 0;
  int64_t values_ = 0;
};

}  // namespace gsa
