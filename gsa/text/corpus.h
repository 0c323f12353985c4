#pragma once
// Documents from files, folders, globs and JSON lines.

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gsa {

struct CorpusOptions {
  /// Files, folders (searched through, hidden entries left out) and globs ("src/*.py").
  std::vector<std::string> inputs;
  /// Which files of a folder count ("py", "md"); empty: all. Files and globs given by name always count.
  std::vector<std::string> extensions;
  /// The field of a JSON line (files ending in .jsonl or .ndjson) that holds the text.
  std::string field = "text";
  /// Leave out and list what is not UTF-8 or not a JSON line with that field, instead of throwing Error.
  bool skip_bad = false;
};

/// The files that the inputs name: each once, those of a folder or glob in sorted order. Error for an input
/// that names none.
std::vector<std::filesystem::path> find_files(const std::vector<std::string>& inputs,
                                              const std::vector<std::string>& extensions);

struct Document {
  std::string text;  // valid UTF-8
  size_t file = 0;   // index in CorpusReader::files()
};

/// Reads one document after another: a whole file, or one line of a JSON lines file. Empty documents are left
/// out.
class CorpusReader {
 public:
  explicit CorpusReader(CorpusOptions options);

  std::optional<Document> next();

  const std::vector<std::filesystem::path>& files() const { return files_; }
  struct Skipped {
    std::string where;   // file, or file:line
    std::string reason;  // "not valid UTF-8 at byte 7"
  };
  const std::vector<Skipped>& skipped() const { return skipped_; }
  /// Bytes of all files, and of those read so far.
  uint64_t bytes_total() const { return bytes_total_; }
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  std::optional<Document> next_line();
  std::optional<Document> whole_file();
  void reject(const std::string& where, const std::string& reason);

  CorpusOptions options_;
  std::vector<std::filesystem::path> files_;
  size_t file_ = 0;
  std::ifstream lines_;  // of files_[file_] while a JSON lines file is being read
  int64_t line_ = 0;
  std::vector<Skipped> skipped_;
  uint64_t bytes_total_ = 0;
  uint64_t bytes_read_ = 0;
};

/// Whether a document belongs to the held-out split: decided by the hash of its content alone, so that copies
/// never lie on both sides.
bool is_held_out(std::string_view text, double fraction);

}  // namespace gsa
