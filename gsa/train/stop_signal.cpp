#include "gsa/train/stop_signal.h"

#include <csignal>

namespace gsa {
namespace {

volatile std::sig_atomic_t stop_requested = 0;

void on_signal(int number) {
  stop_requested = 1;
  std::signal(number, SIG_DFL);
}

}  // namespace

StopSignal::StopSignal() {
  stop_requested = 0;
  interrupt_ = std::signal(SIGINT, on_signal);
  terminate_ = std::signal(SIGTERM, on_signal);
}

StopSignal::~StopSignal() {
  std::signal(SIGINT, interrupt_);
  std::signal(SIGTERM, terminate_);
}

bool StopSignal::requested() const {
  return stop_requested != 0;
}

}  // namespace gsa
