#include "gsa/io/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "gsa/base/error.h"

namespace gsa {
namespace {

using Json = nlohmann::json;  // sorted: gsa::Json looks for a key among all, too slow for 100,000 tensors

static_assert(std::endian::native == std::endian::little, "safetensors stores little-endian numbers");

constexpr uint64_t kMaxHeader = 100'000'000;  // the official reader's limit
constexpr size_t kMaxDimensions = 64;
constexpr const char* kMetadata = "__metadata__";

struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};
// Every dtype of the format that torch has. F4 packs two numbers into one element of torch's
// float4_e2m1fn_x2, so its last size in the file is twice torch's.
constexpr DtypeName kDtypes[] = {
    {"BOOL", at::kBool},
    {"U8", at::kByte},
    {"I8", at::kChar},
    {"I16", at::kShort},
    {"U16", at::kUInt16},
    {"I32", at::kInt},
    {"U32", at::kUInt32},
    {"I64", at::kLong},
    {"U64", at::kUInt64},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"F32", at::kFloat},
    {"F64", at::kDouble},
    {"C64", at::kComplexFloat},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"F8_E4M3FNUZ", at::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", at::kFloat8_e5m2fnuz},
    {"F8_E8M0", at::kFloat8_e8m0fnu},
    {"F4", at::kFloat4_e2m1fn_x2},
};

const char* dtype_name(at::ScalarType dtype) {
  for (const auto& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  return nullptr;
}

/// Text from a file that may be anything, made fit for one line of an error message.
std::string shown(const Json& json) {
  const std::string whole = json.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  return whole.size() <= 120 ? whole : whole.substr(0, 117) + "...";
}

/// Watches the parser: a header is two objects deep and names nothing twice (a plain parser would keep the
/// last of two).
class HeaderShape {
 public:
  explicit HeaderShape(const std::string& source) : source_(source) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth > 2) fail(source_, ": header nested deeper than the format allows");
      if (event == Event::object_start) keys_.emplace_back();
    } else if (event == Event::object_end) {
      keys_.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_.back().insert(key).second) fail(source_, ": header names ", shown(key), " twice");
    }
    return true;
  }

 private:
  const std::string& source_;
  std::vector<std::set<std::string>> keys_;
};

Json parse_header(std::string_view text, const std::string& source) {
  if (text.empty() || text.front() != '{') fail(source, ": header expected a JSON object");
  HeaderShape shape(source);
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t event, Json& parsed) {
      return shape(depth, event, parsed);
    });
  } catch (const Json::exception& error) {
    fail(source, ": header is not valid JSON: ", std::string(error.what()).substr(0, 200));
  }
}

uint64_t read_size(const Json& json, const std::string& where, const char* what) {
  if (!json.is_number_unsigned())
    fail(where, ": ", what, " expected whole numbers from 0, got ", shown(json));
  return json.get<uint64_t>();
}

const Json& member(const Json& entry, const char* key, const std::string& where) {
  const auto found = entry.find(key);
  if (found == entry.end()) fail(where, ": header lacks \"", key, "\"");
  return *found;
}

at::ScalarType read_dtype(const Json& json, const std::string& where) {
  if (json.is_string()) {
    for (const auto& known : kDtypes) {
      if (json.get_ref<const std::string&>() == known.name) return known.dtype;
    }
  }
  fail(where, ": unknown dtype ", shown(json));
}

/// Product of the sizes times the size of an element; an overflow is an error, also one that a size of zero
/// would hide (torch multiplies the sizes into strides).
uint64_t byte_count(const std::vector<int64_t>& shape, at::ScalarType dtype, const std::string& where) {
  int64_t product = static_cast<int64_t>(c10::elementSize(dtype));
  bool overflow = false;
  bool empty = false;
  for (int64_t size : shape) {
    empty |= size == 0;
    overflow |= __builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product);
  }
  if (overflow) fail(where, ": shape too large");
  return empty ? 0 : static_cast<uint64_t>(product);
}

std::vector<int64_t> read_shape(const Json& shape, at::ScalarType dtype, const std::string& where) {
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    fail(where, ": shape expected a list of at most ", kMaxDimensions, " sizes, got ", shown(shape));
  }
  std::vector<int64_t> sizes;
  for (const auto& size : shape) {
    const uint64_t value = read_size(size, where, "shape");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) fail(where, ": shape too large");
    sizes.push_back(static_cast<int64_t>(value));
  }
  if (dtype == at::kFloat4_e2m1fn_x2) {
    if (sizes.empty() || sizes.back() % 2 != 0)
      fail(where, ": F4 expected an even last size, got ", shown(shape));
    sizes.back() /= 2;
  }
  return sizes;
}

TensorEntry read_entry(const std::string& name, const Json& json, const std::string& source) {
  const std::string where = source + ": tensor " + shown(name);
  if (!json.is_object()) fail(where, ": header expected an object, got ", shown(json));
  TensorEntry entry{name, read_dtype(member(json, "dtype", where), where), {}};
  entry.shape = read_shape(member(json, "shape", where), entry.dtype, where);
  const Json& offsets = member(json, "data_offsets", where);
  if (!offsets.is_array() || offsets.size() != 2)
    fail(where, ": data_offsets expected [begin, end], got ", shown(offsets));
  entry.begin = read_size(offsets[0], where, "data_offsets");
  entry.end = read_size(offsets[1], where, "data_offsets");
  const uint64_t bytes = byte_count(entry.shape, entry.dtype, where);
  if (entry.end < entry.begin || entry.end - entry.begin != bytes) {
    fail(where, ": dtype and shape expect ", bytes, " bytes, data_offsets are ", shown(offsets));
  }
  return entry;
}

/// The entries in file order must begin where the one before ended, and the last ends with the file.
void check_contiguous(const std::vector<TensorEntry>& entries, uint64_t data_bytes,
                      const std::string& source) {
  uint64_t expected = 0;
  for (const auto& entry : entries) {
    if (entry.begin != expected) {
      fail(source, ": tensor ", shown(entry.name),
           entry.begin < expected ? " overlaps the one before" : " leaves a gap before it", ": begins at ",
           entry.begin, ", expected ", expected);
    }
    if (entry.end > data_bytes) {
      fail(source, ": truncated: tensor ", shown(entry.name), " ends at byte ", entry.end,
           " of the data, which has ", data_bytes);
    }
    expected = entry.end;
  }
  if (expected != data_bytes)
    fail(source, ": ", data_bytes - expected, " bytes after the last tensor belong to none");
}

std::map<std::string, std::string> read_metadata(const Json& json, const std::string& source) {
  std::map<std::string, std::string> metadata;
  if (!json.is_object()) fail(source, ": __metadata__ expected an object, got ", shown(json));
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string())
      fail(source, ": __metadata__ ", shown(key), " expected a string, got ", shown(value));
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

/// The order and offsets of a file to be written: widest elements first, so that every tensor is aligned, and
/// the caller's order within.
std::vector<size_t> file_order(const NamedTensors& tensors) {
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return tensors[a].second.element_size() > tensors[b].second.element_size();
  });
  return order;
}

void check_writable(const NamedTensors& tensors, const std::string& target) {
  std::set<std::string_view> seen;
  for (const auto& [name, tensor] : tensors) {
    if (name == kMetadata) fail(target, ": a tensor cannot be called ", kMetadata);
    if (!seen.insert(name).second) fail(target, ": two tensors are called ", shown(name));
    if (!tensor.defined()) fail(target, ": tensor ", shown(name), " is undefined");
    if (tensor.layout() != at::kStrided) fail(target, ": tensor ", shown(name), " expected dense storage");
    if (tensor.scalar_type() == at::kFloat4_e2m1fn_x2 && tensor.dim() == 0) {
      fail(target, ": tensor ", shown(name), ": the format has no scalars of two packed numbers");
    }
    if (dtype_name(tensor.scalar_type()) == nullptr) {
      fail(target, ": tensor ", shown(name), ": the format has no dtype ",
           c10::toString(tensor.scalar_type()));
    }
  }
}

std::string make_header(const NamedTensors& tensors, const std::vector<size_t>& order,
                        const std::map<std::string, std::string>& metadata, const std::string& target) {
  Json header = Json::object();
  if (!metadata.empty()) header[kMetadata] = metadata;
  uint64_t offset = 0;
  for (size_t index : order) {
    const auto& [name, tensor] = tensors[index];
    const uint64_t end = offset + tensor.numel() * tensor.element_size();
    std::vector<int64_t> shape = tensor.sizes().vec();
    if (tensor.scalar_type() == at::kFloat4_e2m1fn_x2) shape.back() *= 2;
    header[name] = {
        {"dtype", dtype_name(tensor.scalar_type())}, {"shape", shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    std::string text = header.dump();
    text.append((8 - text.size() % 8) % 8, ' ');
    return text;
  } catch (const Json::exception&) {
    fail(target, ": a tensor's name or the metadata is not valid UTF-8");
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : map_(std::make_shared<MappedFile>(path)) {
  const std::string source = path.string();
  const auto bytes = map_->bytes();
  uint64_t header_size = 0;
  if (bytes.size() < sizeof header_size)
    fail(source, ": truncated: ", bytes.size(), " bytes, expected a safetensors file");
  std::memcpy(&header_size, bytes.data(), sizeof header_size);
  if (header_size > kMaxHeader)
    fail(source, ": not a safetensors file: header of ", header_size, " bytes, at most ", kMaxHeader);
  if (header_size > bytes.size() - sizeof header_size) {
    fail(source, ": truncated: header of ", header_size, " bytes in a file of ", bytes.size());
  }
  data_begin_ = sizeof header_size + header_size;
  const Json header =
      parse_header({reinterpret_cast<const char*>(bytes.data()) + sizeof header_size, header_size}, source);
  std::vector<TensorEntry> entries;
  for (const auto& [name, json] : header.items()) {
    if (name == kMetadata) {
      metadata_ = read_metadata(json, source);
    } else {
      entries.push_back(read_entry(name, json, source));
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_contiguous(entries, bytes.size() - data_begin_, source);
  for (auto& entry : entries) {
    names_.push_back(entry.name);
    entries_.emplace(names_.back(), std::move(entry));
  }
}

const TensorEntry& SafetensorsFile::entry(std::string_view name) const {
  const auto found = entries_.find(std::string(name));
  if (found == entries_.end()) fail(path().string(), ": no tensor called ", shown(std::string(name)));
  return found->second;
}

at::Tensor SafetensorsFile::tensor(std::string_view name) const {
  const TensorEntry& entry = this->entry(name);
  const auto options = at::TensorOptions(entry.dtype);
  const size_t bytes = entry.end - entry.begin;
  if (bytes == 0) return at::empty(entry.shape, options);
  // The map is private and copied on write, so giving out its bytes as mutable is safe.
  auto* data = const_cast<std::byte*>(map_->bytes().data()) + data_begin_ + entry.begin;
  if (reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) != 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data, bytes);
    return copy;
  }
  return at::from_blob(
      data, entry.shape, [map = map_](void*) {}, options);
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_writable(tensors, path.string());
  const auto order = file_order(tensors);
  const std::string header = make_header(tensors, order, metadata, path.string());
  const uint64_t header_size = header.size();
  AtomicFile file(path);
  file.write(&header_size, sizeof header_size);
  file.write(header);
  for (size_t index : order) {
    const at::Tensor tensor = tensors[index].second.detach().to(at::kCPU).contiguous();
    file.write(tensor.const_data_ptr(), tensor.numel() * tensor.element_size());
  }
  file.commit();
}

}  // namespace gsa
