#include "gsa/train/checkpoints.h"

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/io/checkpoint_folder.h"

namespace gsa {
namespace {

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kRemoved = "removed-";

std::optional<int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  int64_t step = 0;
  const char* end = name.data() + name.size();
  const auto [last, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return error == std::errc() && last == end ? std::optional(step) : std::nullopt;
}

}  // namespace

Checkpoints::Checkpoints(const std::filesystem::path& output, int64_t keep, std::set<int64_t> pinned)
    : output_(output), folder_(output / "checkpoints"), keep_(keep), pinned_(std::move(pinned)) {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error) fail(folder_.string(), ": cannot create: ", error.message());
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    const bool ours = name.starts_with(kRemoved) || name.find(kPrefix) <= 1;  // "step-..." or ".step-..."
    if (ours && !step_of(name)) std::filesystem::remove_all(entry.path());
  }
}

std::filesystem::path Checkpoints::path(int64_t step) const {
  char name[32];
  std::snprintf(name, sizeof name, "step-%08lld", static_cast<long long>(step));
  return folder_ / name;
}

std::vector<int64_t> Checkpoints::steps() const {
  std::vector<int64_t> steps;
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::optional<std::filesystem::path> Checkpoints::latest() const {
  const auto all = steps();
  return all.empty() ? std::nullopt : std::optional(path(all.back()));
}

std::filesystem::path Checkpoints::save(int64_t step,
                                        const std::function<void(const std::filesystem::path&)>& write) {
  AtomicFolder folder(path(step));
  write(folder.path());
  folder.commit();
  remove_old();
  return path(step);
}

void Checkpoints::remove_old() const {
  std::vector<int64_t> rotating = steps();
  std::erase_if(rotating, [&](int64_t step) { return pinned_.count(step) > 0; });
  for (size_t i = 0; i + static_cast<size_t>(keep_) < rotating.size(); ++i) {
    // Renamed first: a folder that is half removed must not look like a checkpoint.
    const auto doomed = folder_ / (std::string(kRemoved) + std::to_string(rotating[i]));
    std::error_code ignored;  // an old checkpoint that stays is no reason to stop
    std::filesystem::rename(path(rotating[i]), doomed, ignored);
    std::filesystem::remove_all(doomed, ignored);
  }
}

void Checkpoints::link(const std::string& name, int64_t step) const {
  const auto temporary = output_ / ("." + name + ".new");
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  std::filesystem::create_directory_symlink(std::filesystem::path("checkpoints") / path(step).filename(),
                                            temporary);
  std::filesystem::rename(temporary, output_ / name);
}

}  // namespace gsa
