#include "gsa/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <map>

#include "gsa/base/error.h"

namespace gsa {
namespace {

constexpr int kNfc = UTF8PROC_STABLE | UTF8PROC_COMPOSE;

/// Whether every character is its own normal form: below U+0300 all are under NFC (the first byte of U+0300
/// is 0xCC), below U+0080 always.
bool is_plain(std::string_view text, int options) {
  const uint8_t limit = options == kNfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(), [=](char c) {
    const auto byte = static_cast<uint8_t>(c);
    return byte < limit && (limit != 0x80 || byte < 0x80);
  });
}

std::string normalized(std::string_view text, int options) {
  utf8proc_uint8_t* result = nullptr;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  const auto length = utf8proc_map(bytes, static_cast<utf8proc_ssize_t>(text.size()), &result,
                                   static_cast<utf8proc_option_t>(options));
  if (length < 0) fail("text: cannot be normalised: ", utf8proc_errmsg(length));
  std::string copy(reinterpret_cast<const char*>(result), static_cast<size_t>(length));
  std::free(result);
  return copy;
}

}  // namespace

Normalizer::Normalizer(const nlohmann::json& json, const std::string& source) {
  add(json, source);
}

void Normalizer::add(const nlohmann::json& json, const std::string& source) {
  static const std::map<std::string, int> kForms = {
      {"NFC", kNfc},
      {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
      {"NFKC", kNfc | UTF8PROC_COMPAT},
      {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT},
  };
  if (json.is_null()) return;
  const std::string type = json.is_object() ? json.value("type", "") : "";
  if (type == "Sequence" && json.contains("normalizers") && json["normalizers"].is_array()) {
    for (const auto& step : json["normalizers"]) add(step, source);
  } else if (const auto form = kForms.find(type); form != kForms.end()) {
    options_.push_back(form->second);
  } else {
    fail(source, ": normalizer expected NFC, NFD, NFKC, NFKD or a Sequence of them, got '", type, "'");
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  for (int options : options_) {
    if (!is_plain(result, options)) result = normalized(result, options);
  }
  return result;
}

}  // namespace gsa
