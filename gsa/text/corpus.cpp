#include "gsa/text/corpus.h"

#include <glob.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/text/sha256.h"
#include "gsa/text/utf8.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

bool has_extension(const fs::path& path, const std::vector<std::string>& extensions) {
  const std::string own = path.extension().string();
  return extensions.empty() ||
         std::any_of(extensions.begin(), extensions.end(), [&](const std::string& extension) {
           return own == (extension.starts_with('.') ? extension : "." + extension);
         });
}

bool is_json_lines(const fs::path& path) {
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

std::vector<fs::path> files_below(const fs::path& folder, const std::vector<std::string>& extensions) {
  std::vector<fs::path> found;
  const auto options = fs::directory_options::skip_permission_denied;
  for (auto entry = fs::recursive_directory_iterator(folder, options);
       entry != fs::recursive_directory_iterator(); ++entry) {
    std::error_code broken_link;
    if (entry->path().filename().string().starts_with('.')) {
      if (entry->is_directory(broken_link)) entry.disable_recursion_pending();
    } else if (entry->is_regular_file(broken_link) && has_extension(entry->path(), extensions)) {
      found.push_back(entry->path());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::vector<fs::path> files_matching(const std::string& pattern) {
  std::vector<fs::path> found;
  glob_t matches{};
  if (::glob(pattern.c_str(), GLOB_BRACE | GLOB_TILDE, nullptr, &matches) == 0) {
    for (size_t i = 0; i < matches.gl_pathc; ++i) {
      if (fs::is_regular_file(matches.gl_pathv[i])) found.emplace_back(matches.gl_pathv[i]);
    }
  }
  ::globfree(&matches);
  return found;
}

std::vector<fs::path> files_of(const std::string& input, const std::vector<std::string>& extensions) {
  if (fs::is_directory(input)) {
    auto found = files_below(input, extensions);
    if (found.empty())
      fail(input, ": no file", extensions.empty() ? "" : " with one of the extensions", " in this folder");
    return found;
  }
  if (fs::exists(input)) return {input};
  auto found = files_matching(input);
  if (found.empty()) fail(input, ": no such file or folder, and no file matches it");
  return found;
}

}  // namespace

std::vector<fs::path> find_files(const std::vector<std::string>& inputs,
                                 const std::vector<std::string>& extensions) {
  std::vector<fs::path> files;
  std::set<fs::path> seen;
  for (const auto& input : inputs) {
    for (auto& file : files_of(input, extensions)) {
      if (seen.insert(fs::weakly_canonical(file)).second) files.push_back(std::move(file));
    }
  }
  return files;
}

CorpusReader::CorpusReader(CorpusOptions options)
    : options_(std::move(options)), files_(find_files(options_.inputs, options_.extensions)) {
  for (const auto& file : files_) {
    std::error_code ignored;
    const auto size = fs::file_size(file, ignored);
    if (!ignored) bytes_total_ += size;
  }
}

std::optional<Document> CorpusReader::next() {
  while (file_ < files_.size()) {
    auto document = is_json_lines(files_[file_]) ? next_line() : whole_file();
    if (document && !document->text.empty()) return document;
  }
  return std::nullopt;
}

void CorpusReader::reject(const std::string& where, const std::string& reason) {
  if (!options_.skip_bad) fail(where, ": ", reason);
  skipped_.push_back({where, reason});
}

std::optional<Document> CorpusReader::whole_file() {
  const fs::path& path = files_[file_];
  Document document{read_file(path), file_};
  ++file_;
  bytes_read_ += document.text.size();
  if (const auto invalid = find_invalid_utf8(document.text)) {
    reject(path.string(), "not valid UTF-8 at byte " + std::to_string(*invalid));
    return std::nullopt;
  }
  return document;
}

std::optional<Document> CorpusReader::next_line() {
  const fs::path& path = files_[file_];
  if (!lines_.is_open()) {
    lines_.open(path, std::ios::binary);
    if (!lines_) fail(path.string(), ": cannot open");
    line_ = 0;
  }
  std::string line;
  if (!std::getline(lines_, line)) {
    if (lines_.bad()) fail(path.string(), ": cannot read");
    lines_.close();
    lines_.clear();
    ++file_;
    return std::nullopt;
  }
  ++line_;
  bytes_read_ += line.size() + 1;
  if (line.find_first_not_of(" \t\r") == std::string::npos) return std::nullopt;
  const std::string where = path.string() + ":" + std::to_string(line_);
  if (const auto invalid = find_invalid_utf8(line)) {
    reject(where, "not valid UTF-8 at byte " + std::to_string(*invalid) + " of the line");
    return std::nullopt;
  }
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    reject(where, "not a JSON object");
    return std::nullopt;
  }
  const auto text = json.find(options_.field);
  if (text == json.end() || !text->is_string()) {
    reject(where, "no text in the field '" + options_.field + "' (--field names another)");
    return std::nullopt;
  }
  return Document{text->get<std::string>(), file_};
}

bool is_held_out(std::string_view text, double fraction) {
  const auto hash = sha256(text);
  uint64_t leading = 0;
  for (int i = 0; i < 8; ++i) leading = leading << 8 | hash[i];
  return std::ldexp(static_cast<double>(leading >> 11), -53) < fraction;
}

}  // namespace gsa
