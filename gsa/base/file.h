#pragma once
// Files that are read whole, mapped, or replaced without ever being half-written.

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace gsa {

/// The whole file as bytes. Throws Error naming the path when it cannot be read.
std::string read_file(const std::filesystem::path& path);

/// Replaces `path` atomically: writes a temporary file beside it, fsyncs it, renames it, fsyncs the folder.
/// On failure (a full disk, say) the old file is untouched, the temporary one removed, and Error thrown.
void write_file(const std::filesystem::path& path, std::string_view bytes);

/// fsyncs a folder, so that a rename inside it survives a power cut.
void sync_folder(const std::filesystem::path& folder);

/// A file written piece by piece and moved into place by commit(); without commit() nothing appears at
/// `path`.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* bytes, size_t size);
  void write(std::string_view bytes) { write(bytes.data(), bytes.size()); }
  /// fsync, rename to the final path, fsync of the folder.
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

/// A private memory map of a whole file: what is written to it is seen by this process alone.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace gsa
