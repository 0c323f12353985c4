#include "gsa/text/tokenizer.h"

#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/text/added_tokens.h"
#include "gsa/text/bpe.h"
#include "gsa/text/byte_level.h"
#include "gsa/text/normalizer.h"
#include "gsa/text/pretokenizer.h"
#include "gsa/text/sha256.h"
#include "gsa/text/utf8.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;
using JsonMap = nlohmann::json;  // sorted: a vocabulary has too many keys for gsa::Json

JsonMap part(const JsonMap& json, const char* name) {
  return json.value(name, JsonMap());
}

/// What a single text is wrapped in when special tokens are asked for.
struct Wrapping {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

void add_template(const JsonMap& json, Wrapping& wrapping, const std::string& source) {
  bool seen = false;
  for (const auto& item : part(json, "single")) {
    if (item.contains("Sequence")) {
      seen = true;
      continue;
    }
    const std::string name = item.contains("SpecialToken") ? item["SpecialToken"].value("id", "") : "";
    const JsonMap ids = part(part(part(json, "special_tokens"), name.c_str()), "ids");
    if (!ids.is_array() || ids.empty())
      fail(source, ": post_processor: no ids for the special token '", name, "'");
    for (const auto& id : ids) (seen ? wrapping.after : wrapping.before).push_back(id.get<int32_t>());
  }
}

void add_wrapping(const JsonMap& json, Wrapping& wrapping, const std::string& source) {
  const std::string type = json.is_object() ? json.value("type", "") : "";
  if (json.is_null() || type == "ByteLevel") return;  // ByteLevel only moves offsets
  if (type == "Sequence") {
    for (const auto& step : part(json, "processors")) add_wrapping(step, wrapping, source);
  } else if (type == "TemplateProcessing") {
    add_template(json, wrapping, source);
  } else if (type == "RobertaProcessing" || type == "BertProcessing") {
    wrapping.before.push_back(json.at("cls").at(1).get<int32_t>());
    wrapping.after.push_back(json.at("sep").at(1).get<int32_t>());
  } else {
    fail(source, ": post_processor expected ByteLevel, TemplateProcessing or a Sequence of them, got '", type,
         "'");
  }
}

void check_decoder(const JsonMap& json, const std::string& source) {
  if (!json.is_object() || json.value("type", "") != "ByteLevel")
    fail(source, ": decoder expected ByteLevel");
}

/// Everything that one encoding thread uses besides the tokenizer itself.
struct Scratch {
  BpeScratch bpe;
  std::vector<TextPiece> raw;
  std::vector<TextPiece> pieces;
  std::vector<TextSpan> words;
  std::string storage;
};

}  // namespace

struct Tokenizer::Parts {
  Parts(const JsonMap& json, const std::string& source)
      : added(read_added_tokens(part(json, "added_tokens"), source)),
        normalizer(part(json, "normalizer"), source),
        raw_finder(added, /*normalized=*/false, normalizer),
        finder(added, /*normalized=*/true, normalizer),
        pretokenizer(part(json, "pre_tokenizer"), source),
        model(part(json, "model"), source) {
    add_wrapping(part(json, "post_processor"), wrapping, source);
    check_decoder(part(json, "decoder"), source);
    for (const auto& [token, id] : model.vocabulary()) add_token(token, id);
    for (const auto& token : added) {
      add_token(token.content, token.id);
      if (token.special) special[token.id] = true;
    }
  }

  void add_token(const std::string& token, int32_t id) {
    if (static_cast<size_t>(id) >= bytes.size()) {
      bytes.resize(id + 1);
      exists.resize(id + 1, false);
      special.resize(id + 1, false);
    }
    exists[id] = true;
    bytes[id] = bytes_of_token(token);
    ids[token] = id;
  }

  void encode_text(std::string_view text, Scratch& scratch, std::vector<int32_t>& out) const {
    const std::string_view words_of = pretokenizer.split(text, scratch.words, scratch.storage);
    for (const auto& word : scratch.words)
      model.encode(words_of.substr(word.begin, word.size()), scratch.bpe, out);
  }

  void encode_normalized(std::string_view text, bool special, Scratch& scratch,
                         std::vector<int32_t>& out) const {
    scratch.pieces.clear();
    finder.split(text, special, scratch.pieces);
    for (const auto& piece : scratch.pieces) {
      if (piece.id >= 0) {
        out.push_back(piece.id);
      } else {
        encode_text(text.substr(piece.span.begin, piece.span.size()), scratch, out);
      }
    }
  }

  /// `special`: whether special tokens spelled out in the text count as such.
  std::vector<int32_t> encode(std::string_view text, bool special) const {
    if (const auto invalid = find_invalid_utf8(text)) fail("text: not valid UTF-8 at byte ", *invalid);
    auto scratch = borrow();
    std::vector<int32_t> out;
    out.reserve(text.size() / 3 + 8);
    scratch->raw.clear();
    raw_finder.split(text, special, scratch->raw);
    for (const auto& piece : scratch->raw) {
      const std::string_view content = text.substr(piece.span.begin, piece.span.size());
      if (piece.id >= 0) {
        out.push_back(piece.id);
      } else if (normalizer.identity()) {
        encode_normalized(content, special, *scratch, out);
      } else {
        encode_normalized(normalizer.apply(content), special, *scratch, out);
      }
    }
    give_back(std::move(scratch));
    return out;
  }

  std::unique_ptr<Scratch> borrow() const {
    const std::lock_guard lock(mutex);
    if (idle.empty()) return std::make_unique<Scratch>();
    auto scratch = std::move(idle.back());
    idle.pop_back();
    return scratch;
  }

  void give_back(std::unique_ptr<Scratch> scratch) const {
    const std::lock_guard lock(mutex);
    idle.push_back(std::move(scratch));
  }

  std::vector<AddedToken> added;
  Normalizer normalizer;
  AddedTokenFinder raw_finder;
  AddedTokenFinder finder;
  PreTokenizer pretokenizer;
  BpeModel model;
  Wrapping wrapping;
  std::vector<std::string> bytes;  // by id
  std::vector<bool> exists;
  std::vector<bool> special;
  std::unordered_map<std::string, int32_t> ids;
  std::string hash;
  fs::path path;
  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Scratch>> idle;
};

Tokenizer Tokenizer::load(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? path / "tokenizer.json" : path;
  if (!fs::exists(file)) fail(path.string(), ": no tokenizer.json there");
  const std::string text = read_file(file);
  Tokenizer tokenizer;
  try {
    auto parts = std::make_shared<Parts>(JsonMap::parse(text), file.string());
    parts->hash = "sha256:" + sha256_hex(text);
    parts->path = file;
    tokenizer.parts_ = std::move(parts);
  } catch (const JsonMap::exception& error) {
    fail(file.string(), ": not a tokenizer.json: ", std::string(error.what()).substr(0, 200));
  }
  return tokenizer;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special) const {
  if (!add_special) return parts_->encode(text, /*special=*/true);
  std::vector<int32_t> ids = parts_->wrapping.before;
  const auto inner = parts_->encode(text, /*special=*/true);
  ids.insert(ids.end(), inner.begin(), inner.end());
  ids.insert(ids.end(), parts_->wrapping.after.begin(), parts_->wrapping.after.end());
  return ids;
}

std::vector<int32_t> Tokenizer::encode_ordinary(std::string_view text) const {
  return parts_->encode(text, /*special=*/false);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (int32_t id : ids) {
    const std::string& token = token_bytes(id);
    if (!skip_special || !is_special(id)) bytes += token;
  }
  return repair_utf8(bytes);
}

const std::string& Tokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= vocab_size() || !parts_->exists[id]) {
    fail("token id ", id, ": the tokenizer ", parts_->path.string(), " has ids from 0 to ", vocab_size() - 1);
  }
  return parts_->bytes[id];
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = parts_->ids.find(std::string(token));
  return found == parts_->ids.end() ? std::nullopt : std::optional(found->second);
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[id];
}

std::optional<int32_t> Tokenizer::end_of_text() const {
  for (const char* name : {"<|endoftext|>", "<|end_of_text|>", "</s>", "<|eos|>", "<eos>", "<|im_end|>"}) {
    if (const auto id = token_id(name)) return id;
  }
  return std::nullopt;
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(parts_->bytes.size());
}
const std::string& Tokenizer::hash() const {
  return parts_->hash;
}
const fs::path& Tokenizer::path() const {
  return parts_->path;
}

StreamDecoder::StreamDecoder(Tokenizer tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
  const std::string& token = tokenizer_.token_bytes(id);
  if (!skip_special_ || !tokenizer_.is_special(id)) pending_ += token;
  const size_t finished = finished_utf8(pending_);
  std::string text = repair_utf8(std::string_view(pending_).substr(0, finished));
  pending_.erase(0, finished);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = repair_utf8(pending_);
  pending_.clear();
  return text;
}

}  // namespace gsa
