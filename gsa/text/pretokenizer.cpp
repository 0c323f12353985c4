#include "gsa/text/pretokenizer.h"

#include <algorithm>
#include <map>

#include "gsa/base/error.h"

namespace gsa {
namespace {

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

bool flag(const nlohmann::json& json, const char* key, bool missing) {
  const auto found = json.find(key);
  return found == json.end() || !found->is_boolean() ? missing : found->get<bool>();
}

std::string type_of(const nlohmann::json& json) {
  const auto found = json.is_object() ? json.find("type") : json.end();
  return json.is_object() && found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

/// Merges a match into the piece before it, unless that was a match as well.
std::vector<TextSpan> merged_backwards(const auto& pieces, auto&& join) {
  std::vector<TextSpan> merged;
  bool previous = false;
  for (const auto& piece : pieces) {
    if (piece.match && !previous && !merged.empty()) {
      join(merged.back(), piece.span);
    } else {
      merged.push_back(piece.span);
    }
    previous = piece.match;
  }
  return merged;
}

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& json, const std::string& source) {
  add(json, source);
  if (!byte_level_)
    fail(source, ": expected a byte-level tokenizer (a pre_tokenizer that ends with ByteLevel)");
}

void PreTokenizer::add(const nlohmann::json& json, const std::string& source) {
  if (byte_level_) fail(source, ": pre_tokenizer: nothing may follow ByteLevel");
  const std::string type = type_of(json);
  if (type == "Sequence" && json.contains("pretokenizers") && json["pretokenizers"].is_array()) {
    for (const auto& step : json["pretokenizers"]) add(step, source);
  } else if (type == "ByteLevel") {
    Step step;
    step.prefix_space = flag(json, "add_prefix_space", true);
    if (flag(json, "use_regex", true)) step.pattern.emplace(kGpt2Pattern, source);
    steps_.push_back(std::move(step));
    byte_level_ = true;
  } else if (type == "Digits") {
    Step step;
    step.pattern.emplace("\\p{N}", source);
    step.behavior = flag(json, "individual_digits", false) ? Behavior::isolated : Behavior::contiguous;
    steps_.push_back(std::move(step));
  } else if (type == "Split") {
    add_split(json, source);
  } else {
    fail(source, ": pre_tokenizer expected ByteLevel, Split, Digits or a Sequence of them, got '", type, "'");
  }
}

void PreTokenizer::add_split(const nlohmann::json& json, const std::string& source) {
  static const std::map<std::string, Behavior> kBehaviors = {
      {"Removed", Behavior::removed},
      {"Isolated", Behavior::isolated},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous},
  };
  Step step;
  const nlohmann::json pattern = json.value("pattern", nlohmann::json());
  if (pattern.is_object() && pattern.contains("Regex") && pattern["Regex"].is_string()) {
    step.pattern.emplace(pattern["Regex"].get<std::string>(), source);
  } else if (pattern.is_object() && pattern.contains("String") && pattern["String"].is_string()) {
    step.pattern.emplace(escape_pattern(pattern["String"].get<std::string>()), source);
  } else {
    fail(source, ": pre_tokenizer Split expected a pattern {\"Regex\": ...} or {\"String\": ...}, got ",
         pattern.dump().substr(0, 120));
  }
  const auto behavior = json.contains("behavior") && json["behavior"].is_string()
                            ? kBehaviors.find(json["behavior"].get<std::string>())
                            : kBehaviors.end();
  if (behavior == kBehaviors.end())
    fail(source, ": pre_tokenizer Split: unknown behavior ", json.value("behavior", nlohmann::json()).dump());
  step.behavior = behavior->second;
  step.invert = flag(json, "invert", false);
  steps_.push_back(std::move(step));
}

void PreTokenizer::append_pieces(const std::vector<Piece>& pieces, Behavior behavior,
                                 std::vector<TextSpan>& words) {
  std::vector<TextSpan> spans;
  switch (behavior) {
    case Behavior::removed:
      for (const auto& piece : pieces) {
        if (!piece.match) spans.push_back(piece.span);
      }
      break;
    case Behavior::isolated:
      for (const auto& piece : pieces) spans.push_back(piece.span);
      break;
    case Behavior::merged_with_previous:
      spans = merged_backwards(pieces, [](TextSpan& into, TextSpan span) { into.end = span.end; });
      break;
    case Behavior::merged_with_next:
      spans = merged_backwards(std::vector<Piece>(pieces.rbegin(), pieces.rend()),
                               [](TextSpan& into, TextSpan span) { into.begin = span.begin; });
      std::reverse(spans.begin(), spans.end());
      break;
    case Behavior::contiguous: {
      bool previous = false;
      for (const auto& piece : pieces) {
        if (piece.match == previous && !spans.empty()) {
          spans.back().end = piece.span.end;
        } else {
          spans.push_back(piece.span);
        }
        previous = piece.match;
      }
    }
  }
  for (const auto& span : spans) {
    if (span.size() > 0) words.push_back(span);
  }
}

void PreTokenizer::apply(const Step& step, std::string_view text, std::vector<TextSpan>& words) {
  std::vector<TextSpan> matches;
  std::vector<TextSpan> result;
  std::vector<Piece> pieces;
  result.reserve(words.size() * 2);
  for (const auto& word : words) {
    matches.clear();
    pieces.clear();
    step.pattern->find_all(text, word, matches);
    size_t at = word.begin;
    for (const auto& match : matches) {
      if (match.begin > at) pieces.push_back({{at, match.begin}, step.invert});
      pieces.push_back({match, !step.invert});
      at = match.end;
    }
    if (at < word.end) pieces.push_back({{at, word.end}, step.invert});
    append_pieces(pieces, step.behavior, result);
  }
  words.swap(result);
}

std::string_view PreTokenizer::split(std::string_view text, std::vector<TextSpan>& words,
                                     std::string& storage) const {
  words.clear();
  if (!text.empty()) words.push_back({0, text.size()});
  for (const auto& step : steps_) {
    if (step.prefix_space) {
      std::string spaced;
      for (auto& word : words) {
        const size_t begin = spaced.size();
        if (text[word.begin] != ' ') spaced += ' ';
        spaced.append(text, word.begin, word.size());
        word = {begin, spaced.size()};
      }
      storage = std::move(spaced);
      text = storage;
    }
    if (step.pattern) apply(step, text, words);
  }
  return text;
}

}  // namespace gsa
