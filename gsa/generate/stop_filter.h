#pragma once
// Stop strings in streamed text.

#include <string>
#include <string_view>
#include <vector>

namespace gsa {

/// Passes text on until one of the stop strings appears, and holds back what might be the beginning of one.
class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops);

  /// The text that is certain to come before any stop string. After a stop: nothing.
  std::string push(std::string_view text);
  /// What was held back, when the stream ended without a stop string.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace gsa
