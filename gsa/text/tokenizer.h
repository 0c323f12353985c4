#pragma once
// Byte-level BPE from a Hugging Face tokenizer.json (GPT-2, Llama 3, Qwen, SmolLM and their kin), equal to
// the `tokenizers` package.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gsa {

/// Cheap to copy; all functions may be called from several threads at once.
class Tokenizer {
 public:
  /// Reads tokenizer.json, or the tokenizer.json of a folder. Throws Error naming the file and the part that
  /// is malformed or not supported.
  static Tokenizer load(const std::filesystem::path& path);

  /// Token ids of a UTF-8 text; Error names the first invalid byte. `add_special` adds what the
  /// post-processor says (Llama 3: the BOS token). Truncation and padding settings of the file are ignored.
  std::vector<int32_t> encode(std::string_view text, bool add_special = false) const;

  /// Like encode, but special tokens spelled out in the text are ordinary characters there: a document cannot
  /// end itself.
  std::vector<int32_t> encode_ordinary(std::string_view text) const;

  /// The text of the ids; bytes that are not UTF-8 become U+FFFD. Error on an id that does not exist.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  /// The bytes that one token stands for.
  const std::string& token_bytes(int32_t id) const;
  /// The id of a token as the vocabulary spells it ("<|endoftext|>", "Ġthe").
  std::optional<int32_t> token_id(std::string_view token) const;
  /// Whether the id is an added token marked special.
  bool is_special(int32_t id) const;
  /// The token that ends a document (<|endoftext|>, <|end_of_text|>, </s>, ...), when the vocabulary has one.
  std::optional<int32_t> end_of_text() const;

  /// One more than the largest id.
  int64_t vocab_size() const;
  /// "sha256:" and the hash of the file, which tells tokenizers apart.
  const std::string& hash() const;
  /// The file it was read from.
  const std::filesystem::path& path() const;

 private:
  struct Parts;
  std::shared_ptr<const Parts> parts_;
};

/// Turns a stream of ids into text, never emitting half a character.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, bool skip_special = false);

  /// The text that became complete with this id (may be empty).
  std::string push(int32_t id);
  /// What is left: U+FFFD for an unfinished character.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace gsa
