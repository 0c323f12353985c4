#pragma once
// Tokenised text on disk: a folder with manifest.json, tokenizer.json and, per split, shards
// train-00000.safetensors, ... Each shard holds `tokens` (uint16 when the vocabulary fits, else int32) and
// `documents` int64 [n + 1], where each document begins and ends in `tokens`.

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gsa/base/json.h"
#include "gsa/io/safetensors.h"

namespace gsa {

/// The splits of a data folder. A document's split depends on its content alone.
inline constexpr std::string_view kTrainSplit = "train";
inline constexpr std::string_view kHeldOutSplit = "held_out";

/// Writes the shards of one split into a folder (the path() of an AtomicFolder).
class TokenShardWriter {
 public:
  TokenShardWriter(std::filesystem::path folder, std::string split, int64_t vocab_size, int64_t shard_tokens);

  void add_document(std::span<const int32_t> tokens);
  /// Writes the last shard and returns the split's entry of the manifest: documents, tokens, shards.
  Json finish();

 private:
  void write_shard();

  std::filesystem::path folder_;
  std::string split_;
  int64_t vocab_size_;
  int64_t shard_tokens_;
  int64_t documents_ = 0;
  int64_t tokens_ = 0;
  std::vector<int32_t> shard_;
  std::vector<int64_t> boundaries_{0};
  Json shards_ = Json::array();
};

/// One split of a data folder, memory-mapped.
class TokenShards {
 public:
  /// Error when the folder has no manifest, no such split, or a shard is missing or disagrees with the
  /// manifest.
  explicit TokenShards(const std::filesystem::path& folder, std::string_view split = kTrainSplit);

  int64_t documents() const { return static_cast<int64_t>(begins_.size()) - 1; }
  int64_t tokens() const { return begins_.back(); }
  /// Tokens of one document, its end-of-text token included.
  int64_t document_length(int64_t document) const { return begins_.at(document + 1) - begins_.at(document); }
  /// Copies tokens [begin, begin + out.size()) of a document.
  void read(int64_t document, int64_t begin, std::span<int64_t> out) const;

  /// "sha256:..." of the tokenizer that made the shards; compare with Tokenizer::hash().
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }
  int64_t vocab_size() const { return vocab_size_; }
  const Json& manifest() const { return manifest_; }
  const std::filesystem::path& folder() const { return folder_; }

 private:
  struct Shard {
    at::Tensor tokens;
    int64_t first_document = 0;
    int64_t first_token = 0;
  };
  std::filesystem::path folder_;
  Json manifest_;
  std::string tokenizer_hash_;
  int64_t vocab_size_ = 0;
  std::vector<Shard> shards_;
  std::vector<int64_t> begins_{0};
};

}  // namespace gsa
