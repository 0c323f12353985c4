#pragma once
// Cuts a text into the words that merges never cross.

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gsa/text/regex.h"

namespace gsa {

/// The "pre_tokenizer" of a byte-level tokenizer.json: Split, Digits and ByteLevel, alone or in a Sequence
/// that ByteLevel ends.
class PreTokenizer {
 public:
  /// Throws Error, naming `source`, for a pre-tokenizer of another type.
  PreTokenizer(const nlohmann::json& json, const std::string& source);

  /// The words of a valid UTF-8 text. They are ranges of the returned view: `text` itself, or `storage` when
  /// the text had to be changed (ByteLevel's add_prefix_space).
  std::string_view split(std::string_view text, std::vector<TextSpan>& words, std::string& storage) const;

 private:
  enum class Behavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };
  struct Piece {
    TextSpan span;
    bool match;
  };
  struct Step {
    std::optional<Regex> pattern;  // none: only the prefix space
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    bool prefix_space = false;
  };

  void add(const nlohmann::json& json, const std::string& source);
  void add_split(const nlohmann::json& json, const std::string& source);
  static void append_pieces(const std::vector<Piece>& pieces, Behavior behavior,
                            std::vector<TextSpan>& words);
  static void apply(const Step& step, std::string_view text, std::vector<TextSpan>& words);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace gsa
