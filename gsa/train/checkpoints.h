#pragma once
// A run's checkpoints: folders that appear whole or not at all, the newest few and those at the ends of
// stages.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace gsa {

/// The folders <output>/checkpoints/step-00000100, ...
class Checkpoints {
 public:
  /// Removes what an interrupted save or removal left behind. `pinned` steps are never removed.
  Checkpoints(const std::filesystem::path& output, int64_t keep, std::set<int64_t> pinned);

  /// Lets `write` fill a temporary folder, moves it into place and removes what is no longer kept. When
  /// writing fails (a full disk, say) the temporary folder is removed, every older checkpoint is untouched,
  /// and the error goes on to the caller.
  std::filesystem::path save(int64_t step, const std::function<void(const std::filesystem::path&)>& write);

  /// Steps with a checkpoint, ascending.
  std::vector<int64_t> steps() const;
  std::filesystem::path path(int64_t step) const;
  /// The newest one.
  std::optional<std::filesystem::path> latest() const;
  /// Makes <output>/<name> a link to the checkpoint of a step, replacing an older link.
  void link(const std::string& name, int64_t step) const;

 private:
  void remove_old() const;

  std::filesystem::path output_;
  std::filesystem::path folder_;
  int64_t keep_;
  std::set<int64_t> pinned_;
};

}  // namespace gsa
