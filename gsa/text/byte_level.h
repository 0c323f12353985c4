#pragma once
// GPT-2's byte alphabet: every byte is spelled as one printable character (a space is "Ġ").

#include <array>
#include <string>
#include <string_view>

namespace gsa {

/// The character of each byte, as UTF-8.
const std::array<std::string, 256>& byte_characters();

/// The bytes that a token of the vocabulary stands for. A token with a character outside the alphabet stands
/// for its own UTF-8 bytes. `in_alphabet`, when given, says which of the two it was.
std::string bytes_of_token(std::string_view token, bool* in_alphabet = nullptr);

}  // namespace gsa
