#include "gsa/text/added_tokens.h"

#include <algorithm>

#include "gsa/base/error.h"
#include "gsa/text/utf8.h"

namespace gsa {
namespace {

const Regex& space_pattern() {
  static const Regex pattern("\\s", "white space");
  return pattern;
}

/// Word characters as Unicode's regular expressions count them (UTS 18).
const Regex& word_pattern() {
  static const Regex pattern("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]", "word character");
  return pattern;
}

size_t character_before(std::string_view text, size_t at) {
  do {
    --at;
  } while ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

size_t character_after(std::string_view text, size_t at) {
  next_code_point(text, at);
  return at;
}

bool matches(const Regex& pattern, std::string_view text, size_t begin, size_t end) {
  std::vector<TextSpan> found;
  pattern.find_all(text, {begin, end}, found);
  return !found.empty();
}

/// Whether neither neighbour of text[begin, end) is a word character.
bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && matches(word_pattern(), text, character_before(text, begin), begin)) return false;
  return end == text.size() || !matches(word_pattern(), text, end, character_after(text, end));
}

size_t white_space_before(std::string_view text, size_t at) {
  while (at > 0 && matches(space_pattern(), text, character_before(text, at), at))
    at = character_before(text, at);
  return at;
}

size_t white_space_after(std::string_view text, size_t at) {
  while (at < text.size() && matches(space_pattern(), text, at, character_after(text, at)))
    at = character_after(text, at);
  return at;
}

}  // namespace

std::vector<AddedToken> read_added_tokens(const nlohmann::json& json, const std::string& source) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  if (!json.is_array()) fail(source, ": added_tokens expected a list");
  for (const auto& item : json) {
    const bool valid = item.is_object() && item.contains("content") && item["content"].is_string() &&
                       item.contains("id") && item["id"].is_number_unsigned() &&
                       item["id"].get<uint64_t>() < (1 << 24);
    if (!valid)
      fail(source, ": added_tokens expected objects with content and id, got ", item.dump().substr(0, 120));
    const auto flag = [&](const char* key) {
      return item.contains(key) && item[key].is_boolean() && item[key].get<bool>();
    };
    AddedToken token;
    token.content = item["content"].get<std::string>();
    token.id = item["id"].get<int32_t>();
    token.special = flag("special");
    token.single_word = flag("single_word");
    token.strip_left = flag("lstrip");
    token.strip_right = flag("rstrip");
    token.normalized = flag("normalized");
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(const std::vector<AddedToken>& tokens, bool normalized,
                                   const Normalizer& normalizer)
    : nodes_(1) {
  for (const auto& token : tokens) {
    if (token.normalized != normalized) continue;
    tokens_.push_back(token);
    insert(normalized ? normalizer.apply(token.content) : token.content,
           static_cast<int32_t>(tokens_.size()) - 1);
  }
  first_.fill(-1);
  for (const auto& [byte, node] : nodes_[0].next) first_[byte] = node;
}

int32_t AddedTokenFinder::child(int32_t node, uint8_t byte) const {
  const auto& next = nodes_[node].next;
  const auto found = std::lower_bound(next.begin(), next.end(), std::pair<uint8_t, int32_t>(byte, 0));
  return found != next.end() && found->first == byte ? found->second : -1;
}

void AddedTokenFinder::insert(std::string_view spelling, int32_t token) {
  int32_t node = 0;
  for (char c : spelling) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      auto& children = nodes_[node].next;
      children.insert(
          std::lower_bound(children.begin(), children.end(), std::pair<uint8_t, int32_t>(byte, 0)),
          {byte, next});
    }
    node = next;
  }
  if (node != 0 && nodes_[node].token < 0) nodes_[node].token = token;
}

std::pair<int32_t, size_t> AddedTokenFinder::longest_at(std::string_view text, size_t at) const {
  std::pair<int32_t, size_t> best{-1, 0};
  int32_t node = first_[static_cast<uint8_t>(text[at])];
  for (size_t length = 1; node >= 0; ++length) {
    if (nodes_[node].token >= 0) best = {nodes_[node].token, length};
    if (at + length == text.size()) break;
    node = child(node, static_cast<uint8_t>(text[at + length]));
  }
  return best;
}

void AddedTokenFinder::split(std::string_view text, bool special, std::vector<TextPiece>& pieces) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    const auto [index, length] = longest_at(text, at);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at;
    size_t end = at + length;
    at = end;
    if (token.special && !special) continue;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.strip_left) begin = std::max(white_space_before(text, begin), done);
    if (token.strip_right) end = white_space_after(text, end);
    if (done < begin) pieces.push_back({{done, begin}, -1});
    pieces.push_back({{begin, end}, token.id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({{done, text.size()}, -1});
}

}  // namespace gsa
