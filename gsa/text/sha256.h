#pragma once
// SHA-256 (FIPS 180-4): names tokenizers and documents by their content.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace gsa {

/// The 32 bytes of the hash.
std::array<uint8_t, 32> sha256(std::string_view bytes);

/// As 64 hexadecimal digits, what sha256sum prints.
std::string sha256_hex(std::string_view bytes);

}  // namespace gsa
