#pragma once
// Ctrl-C and SIGTERM ask a run to save and leave.

namespace gsa {

/// While it lives, the first SIGINT or SIGTERM only sets a flag; the second ends the process as it always
/// would.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// Whether a signal came.
  bool requested() const;

 private:
  void (*interrupt_)(int);
  void (*terminate_)(int);
};

}  // namespace gsa
