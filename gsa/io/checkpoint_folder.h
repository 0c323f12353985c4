#pragma once
// Folders in the Hugging Face layout: model.safetensors, or shards listed in model.safetensors.index.json.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gsa/io/safetensors.h"

namespace gsa {

/// folder/name, which must exist; else Error: "<folder>: expected a checkpoint folder with <name>, ...".
std::filesystem::path checkpoint_file(const std::filesystem::path& folder, std::string_view name);

/// All tensors of a checkpoint folder (or of one .safetensors file), sharded or not. Opening checks every
/// shard; a missing shard, or a tensor that the index promises and its shard lacks, is named in the error.
class CheckpointTensors {
 public:
  explicit CheckpointTensors(const std::filesystem::path& folder_or_file);

  /// Sorted names.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return shard_of_.count(std::string(name)) > 0; }
  const TensorEntry& entry(std::string_view name) const { return shard(name).entry(name); }
  /// Zero-copy, see SafetensorsFile::tensor.
  at::Tensor tensor(std::string_view name) const { return shard(name).tensor(name); }

 private:
  const SafetensorsFile& shard(std::string_view name) const;

  std::filesystem::path path_;
  std::vector<SafetensorsFile> shards_;
  std::unordered_map<std::string, size_t> shard_of_;
  std::vector<std::string> names_;
};

/// Writes model.safetensors into an existing folder, or shards of at most `max_shard_bytes` and their index
/// when it would be larger. Every file is atomic and the index comes last; to replace a whole checkpoint at
/// once, write into an AtomicFolder.
void write_checkpoint_tensors(const std::filesystem::path& folder, const NamedTensors& tensors,
                              uint64_t max_shard_bytes = 5'000'000'000,
                              const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

/// A folder that appears whole or not at all: write into path(), then commit(). Without commit() nothing is
/// left behind.
class AtomicFolder {
 public:
  /// Creates a temporary folder beside `final_path` (and the parents of both).
  explicit AtomicFolder(std::filesystem::path final_path);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;

  /// Where to write.
  const std::filesystem::path& path() const { return temporary_; }
  /// fsyncs what was written and moves it to the final path; a folder already there is exchanged in one step
  /// and then removed.
  void commit();

 private:
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  bool committed_ = false;
};

}  // namespace gsa
