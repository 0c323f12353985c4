#include "gsa/base/json.h"

#include "gsa/base/error.h"
#include "gsa/base/file.h"

namespace gsa {

Json parse_json(std::string_view text, const std::string& source) {
  try {
    return Json::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/true, /*ignore_comments=*/true);
  } catch (const Json::exception& error) {
    fail(source, ": not valid JSON: ", error.what());
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

void write_json(const std::filesystem::path& path, const Json& json) {
  write_file(path, json.dump(2) + "\n");
}

}  // namespace gsa
