#include "gsa/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <sstream>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/train/tensorboard.h"

namespace gsa {
namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event_of(const Json& record) {
  std::vector<std::pair<std::string, double>> scalars;
  for (const auto& [name, value] : record.items()) {
    if (value.is_number() && name != "step" && name != "time")
      scalars.emplace_back("train/" + name, value.get<double>());
  }
  return tensorboard_record(record.value("time", 0.0), record.at("step").get<int64_t>(), scalars);
}

/// Appends what it can and drops that from `bytes`; false when the disk would not take all.
bool append_to(const std::filesystem::path& path, std::string& bytes) {
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor < 0) return false;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) break;
    bytes.erase(0, static_cast<size_t>(written));
  }
  ::close(descriptor);
  return bytes.empty();
}

}  // namespace

MetricsLog::MetricsLog(const std::filesystem::path& folder, int64_t resume_step)
    : lines_path_(folder / "metrics.jsonl") {
  const auto events_folder = folder / "tensorboard";
  std::filesystem::create_directories(events_folder);
  for (const auto& entry : std::filesystem::directory_iterator(events_folder)) {
    if (entry.path().filename().string().starts_with("events.out.tfevents."))
      std::filesystem::remove(entry.path());
  }
  events_path_ =
      events_folder / ("events.out.tfevents." + std::to_string(static_cast<int64_t>(now() * 1e3)) + ".gsa");
  std::string kept;
  std::string events = tensorboard_header(now());
  if (std::filesystem::exists(lines_path_)) {
    std::istringstream lines(read_file(lines_path_));
    for (std::string line; std::getline(lines, line);) {
      const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      if (!record.is_object() || !record.contains("step") || record["step"].get<int64_t>() > resume_step)
        continue;
      kept += line + "\n";
      events += event_of(record);
    }
  }
  write_file(lines_path_, kept);
  write_file(events_path_, events);
}

void MetricsLog::append(const Json& record) {
  waiting_lines_ += record.dump() + "\n";
  waiting_events_ += event_of(record);
  append_to(lines_path_, waiting_lines_);
  append_to(events_path_, waiting_events_);
}

}  // namespace gsa
