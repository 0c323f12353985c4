#pragma once
// Unicode normalisation before tokenisation (Qwen: NFC).

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace gsa {

/// The "normalizer" of a tokenizer.json: nothing, NFC, NFD, NFKC, NFKD, or a Sequence of them.
class Normalizer {
 public:
  Normalizer() = default;
  /// Throws Error, naming `source`, for a normalizer of another type.
  Normalizer(const nlohmann::json& json, const std::string& source);

  /// Whether it changes nothing, ever.
  bool identity() const { return options_.empty(); }
  /// The normalised form of valid UTF-8.
  std::string apply(std::string_view text) const;

 private:
  void add(const nlohmann::json& json, const std::string& source);

  std::vector<int> options_;  // utf8proc's, one entry a step
};

}  // namespace gsa
