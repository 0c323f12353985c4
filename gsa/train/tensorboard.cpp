#include "gsa/train/tensorboard.h"

#include <array>
#include <bit>

namespace gsa {
namespace {

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}();

/// Little-endian bytes of a number.
template <class T>
std::string fixed(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(T); ++i) bytes.push_back(static_cast<char>((value >> (8 * i)) & 0xFF));
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes.push_back(static_cast<char>((value & 0x7F) | 0x80));
  bytes.push_back(static_cast<char>(value));
  return bytes;
}

// Protobuf fields: a tag byte (field number * 8 + wire type), then the value.
std::string double_field(int number, double value) {
  return char(number * 8 + 1) + fixed(std::bit_cast<uint64_t>(value));
}
std::string float_field(int number, float value) {
  return char(number * 8 + 5) + fixed(std::bit_cast<uint32_t>(value));
}
std::string bytes_field(int number, const std::string& value) {
  return char(number * 8 + 2) + varint(value.size()) + value;
}
std::string integer_field(int number, uint64_t value) {
  return char(number * 8) + varint(value);
}

std::string record(const std::string& event) {
  const std::string length = fixed(static_cast<uint64_t>(event.size()));
  return length + fixed(masked_crc32c(length)) + event + fixed(masked_crc32c(event));
}

}  // namespace

uint32_t masked_crc32c(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xFF];
  crc = ~crc;
  return std::rotr(crc, 15) + 0xA282EAD8u;
}

std::string tensorboard_header(double wall_time) {
  return record(double_field(1, wall_time) + bytes_field(3, "brain.Event:2"));
}

std::string tensorboard_record(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [name, value] : scalars) {
    summary += bytes_field(1, bytes_field(1, name) + float_field(2, static_cast<float>(value)));
  }
  return record(double_field(1, wall_time) + integer_field(2, static_cast<uint64_t>(step)) +
                bytes_field(5, summary));
}

}  // namespace gsa
