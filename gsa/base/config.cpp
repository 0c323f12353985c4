#include "gsa/base/config.h"

#include <algorithm>
#include <charconv>
#include <numeric>

namespace gsa {
namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, diagonal + 1, row[j] + 1});
    }
  }
  return row[b.size()];
}

std::vector<std::string> keys_of(const Json& json) {
  std::vector<std::string> keys;
  if (json.is_object()) {
    for (const auto& [key, unused] : json.items()) keys.push_back(key);
  }
  return keys;
}

Json& child_of(Json& json, const std::string& name, std::string_view assignment) {
  if (json.is_array()) {
    size_t index = 0;
    const auto [end, status] = std::from_chars(name.data(), name.data() + name.size(), index);
    if (status != std::errc() || end != name.data() + name.size() || index >= json.size()) {
      fail("--set ", assignment, ": '", name, "' expected an index below ", json.size());
    }
    return json[index];
  }
  if (!json.contains(name))
    fail("--set ", assignment, ": unknown key '", name, "'", suggestion(name, keys_of(json)));
  return json[name];
}

}  // namespace

std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = SIZE_MAX;
  for (const auto& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string suggestion(std::string_view word, const std::vector<std::string>& candidates) {
  const std::string best = nearest_name(word, candidates);
  if (best.empty()) return "";
  if (edit_distance(word, best) <= std::max<size_t>(2, word.size() / 2))
    return " (did you mean '" + best + "'?)";
  std::string list = "; known:";
  for (const auto& candidate : candidates) list += " " + candidate;
  return list;
}

void set_json_path(Json& json, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos || equals == 0) fail("--set ", assignment, ": expected name=value");
  const std::string path(assignment.substr(0, equals));
  const std::string text(assignment.substr(equals + 1));
  Json* node = &json;
  for (size_t begin = 0; begin <= path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    node = &child_of(*node, path.substr(begin, end - begin), assignment);
    begin = end + 1;
  }
  const Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  *node = value.is_discarded() ? Json(text) : value;
}

namespace detail {

std::string child_path(const std::string& path, std::string_view name) {
  if (path.empty()) return std::string(name);
  return path + (path.back() == ':' ? " " : ".") + std::string(name);
}

void fail_type(const std::string& path, const char* expected, const Json& got) {
  fail(path, ": expected ", expected, ", got ", got.dump());
}

}  // namespace detail
}  // namespace gsa
