#include "gsa/generate/stop_filter.h"

#include <algorithm>
#include <utility>

namespace gsa {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase(stops_, std::string());
}

std::string StopFilter::push(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  // The stop string that is complete first counts, so that the result does not depend on how the text is cut
  // up.
  size_t begin = std::string::npos, end = std::string::npos;
  for (const auto& stop : stops_) {
    const size_t found = held_.find(stop);
    if (found != std::string::npos && found + stop.size() < end) begin = found, end = found + stop.size();
  }
  if (begin != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, "").substr(0, begin);
  }
  // Keep the longest end of the text that begins a stop string.
  size_t keep = 0;
  for (const auto& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (std::string_view(held_).substr(held_.size() - length) == std::string_view(stop).substr(0, length))
        keep = length;
    }
  }
  std::string passed = held_.substr(0, held_.size() - keep);
  held_.erase(0, passed.size());
  return passed;
}

std::string StopFilter::finish() {
  return stopped_ ? "" : std::exchange(held_, "");
}

}  // namespace gsa
