#include "gsa/train/progress.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <fstream>

namespace gsa {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string short_count(double value) {
  if (value >= 1e6) return format("%.2fM", value / 1e6);
  if (value >= 1e3) return format("%.1fk", value / 1e3);
  return format("%.0f", value);
}

}  // namespace

std::string short_duration(double seconds) {
  const long total = std::lround(seconds);
  if (total >= 3600) return format("%ldh%02ldm", total / 3600, total % 3600 / 60);
  if (total >= 60) return format("%ldm%02lds", total / 60, total % 60);
  return format("%lds", total);
}

std::string progress_line(const StepReport& report) {
  std::string line =
      format("%s %ld/%ld", report.stage.c_str(), long(report.stage_step), long(report.stage_steps));
  line += format("  loss %.4f", report.loss);
  if (report.index_kl) line += format("  KL %.3f", *report.index_kl);
  if (report.index_share) line += format(" (%.0f%% of uniform)", 100.0 * *report.index_share);
  line += "  " + short_count(report.tokens_per_second) + " tokens/s";
  line += format("  %.0f MiB", double(report.memory_bytes) / (1024.0 * 1024.0));
  return line + "  ETA " + short_duration(report.remaining_seconds);
}

int64_t resident_memory() {
  int64_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

}  // namespace gsa
