#include "gsa/text/byte_level.h"

#include <cstdint>
#include <unordered_map>

#include "gsa/text/utf8.h"

namespace gsa {
namespace {

/// Printable Latin-1 characters stand for themselves, the other bytes are numbered from U+0100 on.
std::array<char32_t, 256> make_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? static_cast<char32_t>(byte) : next++;
  }
  return alphabet;
}

std::unordered_map<char32_t, uint8_t> make_inverse() {
  std::unordered_map<char32_t, uint8_t> inverse;
  const auto alphabet = make_alphabet();
  for (int byte = 0; byte < 256; ++byte) inverse[alphabet[byte]] = static_cast<uint8_t>(byte);
  return inverse;
}

}  // namespace

const std::array<std::string, 256>& byte_characters() {
  static const auto characters = [] {
    std::array<std::string, 256> texts;
    const auto alphabet = make_alphabet();
    for (int byte = 0; byte < 256; ++byte) append_code_point(texts[byte], alphabet[byte]);
    return texts;
  }();
  return characters;
}

std::string bytes_of_token(std::string_view token, bool* in_alphabet) {
  static const auto inverse = make_inverse();
  std::string bytes;
  bool all = true;
  for (size_t at = 0; all && at < token.size();) {
    const auto found = inverse.find(next_code_point(token, at));
    all = found != inverse.end();
    if (all) bytes += static_cast<char>(found->second);
  }
  if (in_alphabet != nullptr) *in_alphabet = all;
  return all ? bytes : std::string(token);
}

}  // namespace gsa
