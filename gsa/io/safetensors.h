#pragma once
// The safetensors format: 8 bytes of header length, a JSON header, then the tensors' bytes without gaps.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gsa/base/file.h"

namespace gsa {

/// What the header says about one tensor. `begin` and `end` count bytes from the end of the header.
struct TensorEntry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;
  uint64_t end = 0;
};

/// A memory-mapped safetensors file. The whole header is checked when the file is opened: lengths, dtypes,
/// shapes, byte counts, and that the tensors fill the file without gap or overlap; anything else is one
/// gsa::Error that names the file and the tensor.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  /// Names in the order of their bytes in the file.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return entries_.count(std::string(name)) > 0; }
  const TensorEntry& entry(std::string_view name) const;

  /// A CPU tensor over the mapped bytes, which stay alive as long as it does; a copy only when the file did
  /// not align it. Writing to it changes memory, never the file.
  at::Tensor tensor(std::string_view name) const;

  /// The free-form strings of "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return map_->path(); }

 private:
  std::shared_ptr<MappedFile> map_;
  size_t data_begin_ = 0;
  std::vector<std::string> names_;
  std::unordered_map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

/// Writes the tensors (any device, any strides) atomically: a temporary file, fsync, rename. Throws Error on
/// a duplicate or reserved name, a dtype the format lacks, or a failed write, which leaves an older file
/// untouched.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace gsa
