#pragma once
// Tokenizer patterns: Oniguruma's dialect (what tokenizer.json holds) on PCRE2.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gsa {

/// A byte range of a text.
struct TextSpan {
  size_t begin = 0;
  size_t end = 0;
  size_t size() const { return end - begin; }
};

/// A compiled pattern. Matching is thread-safe and needs valid UTF-8.
class Regex {
 public:
  /// Throws Error, naming `source`, for a pattern that does not compile.
  Regex(const std::string& pattern, const std::string& source);

  /// Appends all matches in text[range], which counts as the whole subject (nothing outside it is looked at);
  /// offsets are those of `text`. An empty match right behind another one is left out.
  void find_all(std::string_view text, TextSpan range, std::vector<TextSpan>& matches) const;

 private:
  struct Compiled;
  std::shared_ptr<const Compiled> compiled_;
};

/// The pattern in PCRE2's dialect: \s and \S spelled out as Unicode's white space (PCRE2 counts U+180E among
/// it), and x{n,m}+ as a repeated group, not a possessive one.
std::string translate_pattern(std::string_view pattern);

/// A pattern that matches exactly this text.
std::string escape_pattern(std::string_view text);

}  // namespace gsa
