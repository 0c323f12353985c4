#pragma once
// TensorBoard event files, scalars only: length-prefixed, checksummed protobuf records.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gsa {

/// The CRC-32C of the bytes, rotated and offset as event files (TFRecord) store it.
uint32_t masked_crc32c(std::string_view bytes);

/// The record that opens an event file.
std::string tensorboard_header(double wall_time);

/// One record holding several scalars of one step.
std::string tensorboard_record(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars);

}  // namespace gsa
