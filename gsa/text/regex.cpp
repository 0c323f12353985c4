#define PCRE2_CODE_UNIT_WIDTH 8
#include "gsa/text/regex.h"

#include <pcre2.h>

#include "gsa/base/error.h"

namespace gsa {
namespace {

// Unicode's White_Space, as the inside of a character class.
constexpr const char* kWhiteSpace =
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}";
constexpr const char* kNotWhiteSpace =
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x84\\x86-\\x9f\\xa1-\\x{167f}\\x{1681}-\\x{1fff}\\x{200b}-\\x{2027}\\x{"
    "202a}-\\x{202e}\\x{2030}-\\x{205e}"
    "\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";

/// Copies one atom after another, rewriting those that the two dialects read differently.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        atom_ = out_.size();
        escape(/*in_class=*/false);
      } else if (c == '[') {
        atom_ = out_.size();
        character_class();
      } else if (c == '(') {
        groups_.push_back(out_.size());
        take(1);
      } else if (c == ')') {
        if (!groups_.empty()) {
          atom_ = groups_.back();
          groups_.pop_back();
        }
        take(1);
      } else if (c == '{') {
        interval();
      } else {
        if (std::string_view("|?*+^$").find(c) == std::string_view::npos) atom_ = out_.size();
        take(1);
      }
    }
    return std::move(out_);
  }

 private:
  void take(size_t count) {
    out_.append(pattern_.substr(at_, count));
    at_ += count;
  }

  void escape(bool in_class) {
    const char next = at_ + 1 < pattern_.size() ? pattern_[at_ + 1] : '\0';
    if (next == 's' || next == 'S') {
      const char* set = next == 's' ? kWhiteSpace : kNotWhiteSpace;
      out_ += in_class ? std::string(set) : "[" + std::string(set) + "]";
      at_ += 2;
    } else if (next == 'p' || next == 'P' || next == 'x') {
      const size_t close = at_ + 2 < pattern_.size() && pattern_[at_ + 2] == '{' ? pattern_.find('}', at_)
                                                                                 : std::string_view::npos;
      take(close == std::string_view::npos ? 2 : close + 1 - at_);
    } else {
      take(2);
    }
  }

  void character_class() {
    take(1);
    if (at_ < pattern_.size() && pattern_[at_] == '^') take(1);
    if (at_ < pattern_.size() && pattern_[at_] == ']') take(1);
    while (at_ < pattern_.size() && pattern_[at_] != ']') {
      if (pattern_[at_] == '\\') {
        escape(/*in_class=*/true);
      } else if (pattern_.substr(at_, 2) == "[:") {
        const size_t close = pattern_.find(":]", at_);
        take(close == std::string_view::npos ? 1 : close + 2 - at_);
      } else {
        take(1);
      }
    }
    take(1);
  }

  /// x{n,m}+ : Oniguruma's default syntax repeats the interval, PCRE2 would make it possessive.
  void interval() {
    const size_t close = pattern_.find('}', at_);
    take(close == std::string_view::npos ? pattern_.size() - at_ : close + 1 - at_);
    if (at_ < pattern_.size() && pattern_[at_] == '+') {
      out_.insert(atom_, "(?:");
      out_ += ")";
    }
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  size_t atom_ = 0;  // where the last atom begins in out_
  std::vector<size_t> groups_;
};

std::string error_text(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

struct MatchData {
  pcre2_match_data* data;
  explicit MatchData(const pcre2_code* code) : data(pcre2_match_data_create_from_pattern(code, nullptr)) {}
  ~MatchData() { pcre2_match_data_free(data); }
  MatchData(const MatchData&) = delete;
  MatchData& operator=(const MatchData&) = delete;
};

}  // namespace

struct Regex::Compiled {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;
  bool jit = false;
  std::string source;
  ~Compiled() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
  int match(PCRE2_SPTR subject, size_t size, size_t at, pcre2_match_data* data) const;
};

Regex::Regex(const std::string& pattern, const std::string& source) {
  const std::string translated = translate_pattern(pattern);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto compiled = std::make_shared<Compiled>();
  compiled->source = source;
  compiled->code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
  if (compiled->code == nullptr) fail(source, ": pattern '", pattern, "': ", error_text(error));
  // Backtracking over a long run of spaces is linear, not a runaway: no limit but the text's length.
  compiled->context = pcre2_match_context_create(nullptr);
  pcre2_set_match_limit(compiled->context, UINT32_MAX);
  pcre2_set_depth_limit(compiled->context, UINT32_MAX);
  compiled->jit = pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE) == 0;
  compiled_ = std::move(compiled);
}

int Regex::Compiled::match(PCRE2_SPTR subject, size_t size, size_t at, pcre2_match_data* data) const {
  if (jit) {
    const int count = pcre2_jit_match(code, subject, size, at, 0, data, context);
    if (count != PCRE2_ERROR_JIT_STACKLIMIT) return count;
  }
  return pcre2_match(code, subject, size, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data, context);
}

void Regex::find_all(std::string_view text, TextSpan range, std::vector<TextSpan>& matches) const {
  const MatchData match(compiled_->code);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data()) + range.begin;
  const PCRE2_SIZE* found = pcre2_get_ovector_pointer(match.data);
  size_t last_end = SIZE_MAX;
  for (size_t at = 0; at <= range.size();) {
    const int count = compiled_->match(subject, range.size(), at, match.data);
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) fail(compiled_->source, ": pattern: ", error_text(count));
    const bool empty = found[0] == found[1];
    if (!empty || found[0] != last_end) matches.push_back({range.begin + found[0], range.begin + found[1]});
    at = last_end = found[1];
    if (empty) {  // step over one character
      do {
        ++at;
      } while (at < range.size() && (subject[at] & 0xC0) == 0x80);
    }
  }
}

std::string translate_pattern(std::string_view pattern) {
  return Translator(pattern).run();
}

std::string escape_pattern(std::string_view text) {
  std::string pattern;
  for (char c : text) {
    if (std::string_view("\\^$.[]|()?*+{}/-#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

}  // namespace gsa
