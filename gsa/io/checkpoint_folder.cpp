#include "gsa/io/checkpoint_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "gsa/base/error.h"
#include "gsa/base/json.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

/// tensor name -> shard file name.
std::map<std::string, std::string> read_index(const fs::path& path) {
  nlohmann::json index;  // sorted, for very many names
  try {
    index = nlohmann::json::parse(read_file(path));
  } catch (const nlohmann::json::exception& error) {
    fail(path.string(), ": not valid JSON: ", std::string(error.what()).substr(0, 200));
  }
  const auto found = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || found == index.end() || !found->is_object()) {
    fail(path.string(), ": expected an object \"weight_map\" of tensor and shard names");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, file] : found->items()) {
    // A shard lies beside its index: a path that leads elsewhere is a mistake or an attack.
    if (!file.is_string() || file.get<std::string>().empty() ||
        file.get<std::string>().find('/') != std::string::npos) {
      fail(path.string(), ": weight_map of '", name, "' expected a file name, got ",
           file.dump().substr(0, 120));
    }
    shards[name] = file.get<std::string>();
  }
  return shards;
}

uint64_t bytes_of(const at::Tensor& tensor) {
  return tensor.numel() * tensor.element_size();
}

/// Tensors in their order, a new shard whenever the next one would not fit.
std::vector<NamedTensors> split_shards(const NamedTensors& tensors, uint64_t max_bytes) {
  std::vector<NamedTensors> shards(1);
  uint64_t bytes = 0;
  for (const auto& item : tensors) {
    if (!item.second.defined()) fail("checkpoint: tensor '", item.first, "' is undefined");
    if (!shards.back().empty() && bytes + bytes_of(item.second) > max_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().push_back(item);
    bytes += bytes_of(item.second);
  }
  return shards;
}

std::string shard_name(size_t number, size_t count) {
  char name[64];
  std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", number + 1, count);
  return name;
}

/// Moves `from` to `to`. An existing `to` is exchanged in one step and removed; on a file system that cannot
/// exchange, it is moved aside first.
void replace_folder(const fs::path& from, const fs::path& to) {
  const bool exists = fs::exists(to);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), exists ? RENAME_EXCHANGE : 0) == 0) {
    std::error_code ignored;
    if (exists) fs::remove_all(from, ignored);
    return;
  }
  if (errno != EINVAL && errno != ENOSYS)
    fail(to.string(), ": cannot put the folder in place: ", std::strerror(errno));
  fs::path aside = from;
  aside += ".old";
  std::error_code error;
  if (exists) fs::rename(to, aside, error);
  if (!error) fs::rename(from, to, error);
  if (error) fail(to.string(), ": cannot put the folder in place: ", error.message());
  fs::remove_all(aside, error);
}

}  // namespace

fs::path checkpoint_file(const fs::path& folder, std::string_view name) {
  if (!fs::is_directory(folder)) fail(folder.string(), ": no such checkpoint folder");
  fs::path file = folder / name;
  if (!fs::is_regular_file(file)) fail(folder.string(), ": checkpoint folder lacks ", name);
  return file;
}

CheckpointTensors::CheckpointTensors(const fs::path& folder_or_file) : path_(folder_or_file) {
  if (fs::is_regular_file(path_)) {
    shards_.emplace_back(path_);
  } else if (!fs::is_directory(path_)) {
    fail(path_.string(), ": no such checkpoint folder");
  } else if (fs::exists(path_ / kSingle)) {
    shards_.emplace_back(path_ / kSingle);
  } else if (!fs::exists(path_ / kIndex)) {
    fail(path_.string(), ": checkpoint folder lacks ", kSingle, " (or ", kIndex, " and its shards)");
  } else {
    std::map<std::string, size_t> opened;
    for (const auto& [name, file] : read_index(path_ / kIndex)) {
      if (!opened.count(file)) {
        if (!fs::exists(path_ / file))
          fail(path_.string(), ": checkpoint folder lacks ", file, ", a shard that ", kIndex, " names");
        opened[file] = shards_.size();
        shards_.emplace_back(path_ / file);
      }
      if (!shards_[opened[file]].contains(name))
        fail((path_ / file).string(), ": lacks tensor '", name, "', which ", kIndex, " puts there");
      shard_of_[name] = opened[file];
    }
  }
  if (shard_of_.empty() && shards_.size() == 1) {
    for (const auto& name : shards_[0].names()) shard_of_[name] = 0;
  }
  for (const auto& [name, unused] : shard_of_) names_.push_back(name);
  std::sort(names_.begin(), names_.end());
}

const SafetensorsFile& CheckpointTensors::shard(std::string_view name) const {
  const auto found = shard_of_.find(std::string(name));
  if (found == shard_of_.end()) fail(path_.string(), ": no tensor called '", name, "'");
  return shards_[found->second];
}

void write_checkpoint_tensors(const fs::path& folder, const NamedTensors& tensors, uint64_t max_shard_bytes,
                              const std::map<std::string, std::string>& metadata) {
  const auto shards = split_shards(tensors, max_shard_bytes);
  if (shards.size() == 1) {
    write_safetensors(folder / kSingle, shards[0], metadata);
    return;
  }
  uint64_t total = 0;
  std::map<std::string, std::string> weight_map;
  for (size_t number = 0; number < shards.size(); ++number) {
    const std::string file = shard_name(number, shards.size());
    for (const auto& [name, tensor] : shards[number]) {
      if (!weight_map.emplace(name, file).second)
        fail(folder.string(), ": two tensors are called '", name, "'");
      total += bytes_of(tensor);
    }
    write_safetensors(folder / file, shards[number], metadata);
  }
  write_json(folder / kIndex, Json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}});
}

AtomicFolder::AtomicFolder(fs::path final_path) : final_(std::move(final_path)) {
  if (!final_.has_filename()) final_ = final_.parent_path();  // "runs/a/" names runs/a
  temporary_ = final_;
  temporary_ += ".tmp." + std::to_string(::getpid());
  std::error_code error;
  fs::remove_all(temporary_, error);  // left by a killed process that had the same id
  fs::create_directories(temporary_, error);
  if (error) fail(temporary_.string(), ": cannot create the folder: ", error.message());
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  for (const auto& entry : fs::recursive_directory_iterator(temporary_)) {
    if (entry.is_directory()) sync_folder(entry.path());
    if (!entry.is_regular_file()) continue;
    const int descriptor = ::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC);
    const bool synced = descriptor >= 0 && ::fsync(descriptor) == 0;
    if (descriptor >= 0) ::close(descriptor);
    if (!synced) fail(entry.path().string(), ": cannot fsync: ", std::strerror(errno));
  }
  sync_folder(temporary_);
  replace_folder(temporary_, final_);
  committed_ = true;
  sync_folder(final_.parent_path());
}

}  // namespace gsa
