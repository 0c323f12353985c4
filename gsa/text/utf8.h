#pragma once
// UTF-8: validation, code points, and repair.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace gsa {

/// The offset of the first byte that is not part of valid UTF-8 (overlong forms and surrogates are not
/// valid), or nothing.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Reads the code point at `at` of valid UTF-8 and moves `at` behind it.
char32_t next_code_point(std::string_view text, size_t& at);

/// Appends the UTF-8 form of a code point.
void append_code_point(std::string& text, char32_t code_point);

/// Length of the longest prefix of `bytes` that more bytes could not change the reading of: everything but an
/// unfinished character at the end.
size_t finished_utf8(std::string_view bytes);

/// Replaces every maximal invalid part by U+FFFD (Unicode's recommended practice).
std::string repair_utf8(std::string_view bytes);

}  // namespace gsa
