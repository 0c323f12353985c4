#pragma once
// Config structs <-> JSON. A struct names each field once:
//
//   struct OptimizerConfig {
//     double learning_rate = 1e-3;
//     template <class Visitor> void fields(Visitor&& field) { field("learning_rate", learning_rate); }
//   };
//
// Reading is strict: an unknown key is an error that names the nearest known one, a wrong type names the key.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "gsa/base/error.h"
#include "gsa/base/json.h"

namespace gsa {

/// The member of `candidates` with the smallest edit distance to `word` ("" when there are none).
std::string nearest_name(std::string_view word, const std::vector<std::string>& candidates);

/// " (did you mean 'x'?)" for an unknown name, or a list of the known names when nothing is near.
std::string suggestion(std::string_view word, const std::vector<std::string>& candidates);

/// Replaces the value at a dotted path ("optimizer.learning_rate=3e-4", "stages.0.steps=5"). The value is
/// read as JSON, else as a string. Throws Error for a path that does not exist.
void set_json_path(Json& json, std::string_view assignment);

namespace detail {

struct AnyVisitor {
  template <class T>
  void operator()(const char*, T&) {}
};

template <class T>
concept ConfigStruct = requires(T& value, AnyVisitor visitor) {
  value.fields(visitor);
};

template <class T>
struct IsVector : std::false_type {};
template <class T>
struct IsVector<std::vector<T>> : std::true_type {};
template <class T>
struct IsOptional : std::false_type {};
template <class T>
struct IsOptional<std::optional<T>> : std::true_type {};
template <class T>
struct IsMap : std::false_type {};
template <class T>
struct IsMap<std::map<std::string, T>> : std::true_type {};

std::string child_path(const std::string& path, std::string_view name);
[[noreturn]] void fail_type(const std::string& path, const char* expected, const Json& got);

template <class T>
Json value_to_json(const T& value);

struct ToJson {
  Json& json;
  template <class T>
  void operator()(const char* name, T& value) {
    json[name] = value_to_json(value);
  }
};

template <class T>
Json value_to_json(const T& value) {
  if constexpr (ConfigStruct<T>) {
    Json json = Json::object();
    T copy = value;
    copy.fields(ToJson{json});
    return json;
  } else if constexpr (IsVector<T>::value) {
    Json json = Json::array();
    for (const auto& item : value) json.push_back(value_to_json(item));
    return json;
  } else if constexpr (IsMap<T>::value) {
    Json json = Json::object();
    for (const auto& [key, item] : value) json[key] = value_to_json(item);
    return json;
  } else if constexpr (IsOptional<T>::value) {
    return value ? value_to_json(*value) : Json(nullptr);
  } else {
    return Json(value);
  }
}

template <class T>
void value_from_json(const Json& json, T& value, const std::string& path);

struct CollectNames {
  std::vector<std::string>& names;
  template <class T>
  void operator()(const char* name, T&) {
    names.emplace_back(name);
  }
};

struct FromJson {
  const Json& json;
  const std::string& path;
  template <class T>
  void operator()(const char* name, T& value) {
    if (auto found = json.find(name); found != json.end())
      value_from_json(*found, value, child_path(path, name));
  }
};

template <class T>
void struct_from_json(const Json& json, T& value, const std::string& path) {
  if (!json.is_object()) fail_type(path, "an object", json);
  std::vector<std::string> names;
  value.fields(CollectNames{names});
  for (const auto& [key, unused] : json.items()) {
    bool known = false;
    for (const auto& name : names) known = known || name == key;
    if (!known) fail(child_path(path, key), ": unknown key", suggestion(key, names));
  }
  value.fields(FromJson{json, path});
}

template <class T>
void value_from_json(const Json& json, T& value, const std::string& path) {
  if constexpr (ConfigStruct<T>) {
    struct_from_json(json, value, path);
  } else if constexpr (IsOptional<T>::value) {
    if (json.is_null()) {
      value.reset();
    } else {
      value_from_json(json, value.emplace(), path);
    }
  } else if constexpr (IsVector<T>::value) {
    if (!json.is_array()) fail_type(path, "a list", json);
    value.clear();
    for (size_t i = 0; i < json.size(); ++i)
      value_from_json(json[i], value.emplace_back(), child_path(path, std::to_string(i)));
  } else if constexpr (IsMap<T>::value) {
    if (!json.is_object()) fail_type(path, "an object", json);
    value.clear();
    for (const auto& [key, item] : json.items()) value_from_json(item, value[key], child_path(path, key));
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!json.is_boolean()) fail_type(path, "true or false", json);
    value = json.get<bool>();
  } else if constexpr (std::is_integral_v<T>) {
    if (json.is_number_float() &&
        json.get<double>() == static_cast<double>(static_cast<T>(json.get<double>()))) {
      value = static_cast<T>(json.get<double>());  // 1e6 in a run file
    } else if (json.is_number_integer()) {
      value = json.get<T>();
    } else {
      fail_type(path, "a whole number", json);
    }
  } else if constexpr (std::is_floating_point_v<T>) {
    if (!json.is_number()) fail_type(path, "a number", json);
    value = json.get<T>();
  } else {
    static_assert(std::is_same_v<T, std::string>,
                  "a config field is a bool, number, string, list, map, optional or config struct");
    if (!json.is_string()) fail_type(path, "a string", json);
    value = json.get<std::string>();
  }
}

}  // namespace detail

/// The struct with all its fields, defaults included.
template <detail::ConfigStruct Config>
Json config_to_json(const Config& config) {
  return detail::value_to_json(config);
}

/// Overwrites the fields that `json` names; others keep their values. `source` names the document in
/// messages.
template <detail::ConfigStruct Config>
void config_from_json(const Json& json, Config& config, const std::string& source) {
  detail::struct_from_json(json, config, source.empty() ? "" : source + ":");
}

/// Applies one "a.b=c" assignment to a config struct.
template <detail::ConfigStruct Config>
void config_set(Config& config, std::string_view assignment) {
  Json json = config_to_json(config);
  set_json_path(json, assignment);
  config_from_json(json, config, "--set");
}

}  // namespace gsa
