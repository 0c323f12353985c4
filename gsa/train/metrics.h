#pragma once
// What a run writes down: metrics.jsonl, one object a line, and the same numbers for TensorBoard.

#include <cstdint>
#include <filesystem>
#include <string>

#include "gsa/base/json.h"

namespace gsa {

/// Appends records to <folder>/metrics.jsonl and <folder>/tensorboard/events.out.tfevents.<start>.
///
/// Opening keeps the records up to `resume_step` and drops later ones (and a half-written last line): they
/// belong to steps that will be run again. The event file is rewritten from what was kept. A disk that is
/// full does not stop a run: lines wait in memory for a later append.
class MetricsLog {
 public:
  MetricsLog(const std::filesystem::path& folder, int64_t resume_step);

  /// `record` holds "step" and "time" (seconds since 1970) and any numbers and strings; numbers go to
  /// TensorBoard under "train/<name>".
  void append(const Json& record);

  /// Whether something could not be written yet.
  bool behind() const { return !waiting_lines_.empty() || !waiting_events_.empty(); }

 private:
  std::filesystem::path lines_path_;
  std::filesystem::path events_path_;
  std::string waiting_lines_;
  std::string waiting_events_;
};

}  // namespace gsa
