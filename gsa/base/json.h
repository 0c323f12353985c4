#pragma once
// Reading and writing JSON documents (comments allowed when reading).

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace gsa {

using Json = nlohmann::ordered_json;

/// Parses JSON with // and /* */ comments. `source` names the document in error messages. Throws Error.
Json parse_json(std::string_view text, const std::string& source);

/// Reads and parses a file. Throws Error when it is missing or malformed.
Json read_json(const std::filesystem::path& path);

/// Writes indented JSON atomically (see write_file).
void write_json(const std::filesystem::path& path, const Json& json);

}  // namespace gsa
