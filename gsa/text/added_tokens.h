#pragma once
// Added tokens (special ones among them), which are cut out of a text before anything else sees it.

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gsa/text/normalizer.h"
#include "gsa/text/regex.h"

namespace gsa {

/// One entry of "added_tokens".
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool single_word = false;  // only where no word character touches it
  bool strip_left = false;   // takes the white space before it along
  bool strip_right = false;
  bool normalized = false;  // looked for in the normalised text
};

/// Reads "added_tokens". Throws Error naming `source`.
std::vector<AddedToken> read_added_tokens(const nlohmann::json& json, const std::string& source);

/// A range of a text: an added token (id >= 0) or ordinary text (id < 0).
struct TextPiece {
  TextSpan span;
  int32_t id = -1;
};

/// Finds added tokens: at each position the longest, from left to right.
class AddedTokenFinder {
 public:
  /// Looks for those tokens whose `normalized` is as given, in the spelling that the normalizer gives them.
  AddedTokenFinder(const std::vector<AddedToken>& tokens, bool normalized, const Normalizer& normalizer);

  /// Cuts a text into added tokens and the text between them. Without `special`, special tokens count as
  /// text.
  void split(std::string_view text, bool special, std::vector<TextPiece>& pieces) const;

 private:
  struct Node {
    int32_t token = -1;  // index in tokens_
    std::vector<std::pair<uint8_t, int32_t>> next;
  };
  int32_t child(int32_t node, uint8_t byte) const;
  void insert(std::string_view spelling, int32_t token);
  /// The longest token at text[at] (index, -1 for none) and its length.
  std::pair<int32_t, size_t> longest_at(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::array<int32_t, 256> first_;  // the root's children
};

}  // namespace gsa
