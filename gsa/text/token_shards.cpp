#include "gsa/text/token_shards.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdio>

#include "gsa/base/error.h"
#include "gsa/text/sha256.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxUint16Vocabulary = 1 << 16;

std::string shard_name(const std::string& split, size_t number) {
  char name[64];
  std::snprintf(name, sizeof name, "-%05zu.safetensors", number);
  return split + name;
}

template <class T>
at::Tensor view_of(std::vector<T>& values, at::ScalarType dtype) {
  return at::from_blob(values.data(), {static_cast<int64_t>(values.size())}, at::TensorOptions(dtype));
}

std::string hash_of_file(const fs::path& path) {
  const MappedFile map(path);
  return "sha256:" + sha256_hex({reinterpret_cast<const char*>(map.bytes().data()), map.bytes().size()});
}

const Json& member(const Json& json, std::string_view key, const std::string& where) {
  const auto found = json.is_object() ? json.find(std::string(key)) : json.end();
  if (!json.is_object() || found == json.end()) fail(where, ": lacks \"", key, "\"");
  return *found;
}

int64_t whole_number(const Json& json, std::string_view key, const std::string& where) {
  const Json& value = member(json, key, where);
  if (!value.is_number_integer()) fail(where, ": \"", key, "\" expected a whole number, got ", value.dump());
  return value.get<int64_t>();
}

std::string text(const Json& json, std::string_view key, const std::string& where) {
  const Json& value = member(json, key, where);
  if (!value.is_string()) fail(where, ": \"", key, "\" expected a string, got ", value.dump());
  return value.get<std::string>();
}

/// The boundaries of a shard's documents, checked against its tokens.
std::vector<int64_t> read_boundaries(const SafetensorsFile& file, const at::Tensor& tokens) {
  const at::Tensor documents = file.tensor("documents");
  const bool shaped = documents.scalar_type() == at::kLong && documents.dim() == 1 && documents.numel() > 0 &&
                      tokens.dim() == 1 &&
                      (tokens.scalar_type() == at::kUInt16 || tokens.scalar_type() == at::kInt);
  if (!shaped)
    fail(file.path().string(), ": expected tokens uint16 or int32 [n] and documents int64 [d + 1]");
  const auto* data = documents.const_data_ptr<int64_t>();
  std::vector<int64_t> boundaries(data, data + documents.numel());
  if (boundaries.front() != 0 || boundaries.back() != tokens.numel() ||
      !std::is_sorted(boundaries.begin(), boundaries.end())) {
    fail(file.path().string(), ": documents expected ascending offsets from 0 to ", tokens.numel());
  }
  return boundaries;
}

}  // namespace

TokenShardWriter::TokenShardWriter(fs::path folder, std::string split, int64_t vocab_size,
                                   int64_t shard_tokens)
    : folder_(std::move(folder)),
      split_(std::move(split)),
      vocab_size_(vocab_size),
      shard_tokens_(shard_tokens) {}

void TokenShardWriter::add_document(std::span<const int32_t> tokens) {
  shard_.insert(shard_.end(), tokens.begin(), tokens.end());
  boundaries_.push_back(static_cast<int64_t>(shard_.size()));
  ++documents_;
  tokens_ += static_cast<int64_t>(tokens.size());
  if (static_cast<int64_t>(shard_.size()) >= shard_tokens_) write_shard();
}

void TokenShardWriter::write_shard() {
  if (boundaries_.size() == 1) return;
  const fs::path path = folder_ / shard_name(split_, shards_.size());
  std::vector<uint16_t> narrow;
  at::Tensor tokens;
  if (vocab_size_ <= kMaxUint16Vocabulary) {
    narrow.assign(shard_.begin(), shard_.end());
    tokens = view_of(narrow, at::kUInt16);
  } else {
    tokens = view_of(shard_, at::kInt);
  }
  write_safetensors(path, {{"documents", view_of(boundaries_, at::kLong)}, {"tokens", tokens}});
  shards_.push_back({{"file", path.filename().string()},
                     {"documents", boundaries_.size() - 1},
                     {"tokens", shard_.size()},
                     {"hash", hash_of_file(path)}});
  shard_.clear();
  boundaries_.assign(1, 0);
}

Json TokenShardWriter::finish() {
  write_shard();
  return {{"documents", documents_}, {"tokens", tokens_}, {"shards", shards_}};
}

TokenShards::TokenShards(const fs::path& folder, std::string_view split) : folder_(folder) {
  const fs::path manifest = folder / "manifest.json";
  if (!fs::exists(manifest))
    fail(folder.string(), ": expected a data folder with manifest.json (see `gsa data prepare`)");
  const std::string where = manifest.string();
  manifest_ = read_json(manifest);
  const Json& tokenizer = member(manifest_, "tokenizer", where);
  tokenizer_hash_ = text(tokenizer, "hash", where);
  vocab_size_ = whole_number(tokenizer, "vocab_size", where);
  const Json& entry = member(member(manifest_, "splits", where), split, where);
  for (const auto& shard : member(entry, "shards", where)) {
    const std::string name = text(shard, "file", where);
    if (!fs::exists(folder / name))
      fail(folder.string(), ": lacks ", name, ", a shard that manifest.json names");
    const SafetensorsFile file(folder / name);
    const at::Tensor tokens = file.tensor("tokens");
    const auto boundaries = read_boundaries(file, tokens);
    if (tokens.numel() != whole_number(shard, "tokens", where) ||
        static_cast<int64_t>(boundaries.size()) - 1 != whole_number(shard, "documents", where)) {
      fail(file.path().string(), ": not the shard that manifest.json describes (", tokens.numel(),
           " tokens in ", boundaries.size() - 1, " documents)");
    }
    shards_.push_back({tokens, documents(), this->tokens()});
    for (size_t i = 1; i < boundaries.size(); ++i)
      begins_.push_back(shards_.back().first_token + boundaries[i]);
  }
}

void TokenShards::read(int64_t document, int64_t begin, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  if (document < 0 || document >= documents() || begin < 0 || begin + count > document_length(document)) {
    fail(folder_.string(), ": document ", document, " has no tokens [", begin, ", ", begin + count, ")");
  }
  const auto after =
      std::upper_bound(shards_.begin(), shards_.end(), document,
                       [](int64_t value, const Shard& shard) { return value < shard.first_document; });
  const Shard& shard = *(after - 1);
  const int64_t offset = begins_[document] - shard.first_token + begin;
  if (shard.tokens.scalar_type() == at::kUInt16) {
    const auto* tokens = shard.tokens.const_data_ptr<uint16_t>() + offset;
    std::copy(tokens, tokens + count, out.begin());
  } else {
    const auto* tokens = shard.tokens.const_data_ptr<int32_t>() + offset;
    std::copy(tokens, tokens + count, out.begin());
  }
}

}  // namespace gsa
