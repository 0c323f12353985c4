#include "gsa/text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "gsa/base/error.h"
#include "gsa/text/byte_level.h"

namespace gsa {
namespace {

constexpr size_t kCacheEntries = size_t{1} << 15;
constexpr int64_t kMaxId = 1 << 24;

uint64_t mix(uint64_t value) {
  value *= 0x9E3779B97F4A7C15u;
  return value ^ (value >> 32);
}

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size();
  size_t at = 0;
  uint64_t word = 0;
  for (; at + 8 <= bytes.size(); at += 8) {
    std::memcpy(&word, bytes.data() + at, 8);
    hash = mix(hash ^ word);
  }
  word = 0;
  std::memcpy(&word, bytes.data() + at, bytes.size() - at);
  return mix(hash ^ word);
}

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

bool is_set(const nlohmann::json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return false;
  if (found->is_boolean()) return found->get<bool>();
  if (found->is_string()) return !found->get_ref<const std::string&>().empty();
  return !(found->is_number() && found->get<double>() == 0);
}

}  // namespace

BpeScratch::BpeScratch() : cache_(kCacheEntries) {}

BpeModel::BpeModel(const nlohmann::json& json, const std::string& source) {
  const bool bpe = json.is_object() && json.contains("vocab") && json.contains("merges") &&
                   json.value("type", "BPE") == "BPE";
  if (!bpe) fail(source, ": model expected BPE with vocab and merges");
  for (const char* option : {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"}) {
    if (is_set(json, option))
      fail(source, ": model: '", option, "' is not part of byte-level BPE, got ", json[option].dump());
  }
  ignore_merges_ = is_set(json, "ignore_merges");
  fuse_unknown_ = is_set(json, "fuse_unk");
  read_vocabulary(json["vocab"], source);
  if (is_set(json, "unk_token")) unknown_ = id_of(json["unk_token"].get<std::string>(), source, "unk_token");
  read_merges(json["merges"], source);
}

void BpeModel::read_vocabulary(const nlohmann::json& json, const std::string& source) {
  if (!json.is_object()) fail(source, ": model: vocab expected an object");
  byte_ids_.fill(-1);
  for (const auto& [token, id] : json.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxId) {
      fail(source, ": model: vocab expected ids from 0 to ", kMaxId - 1, ", got ", id.dump(), " for '", token,
           "'");
    }
    vocabulary_[token] = id.get<int32_t>();
    bool in_alphabet = false;
    std::string bytes = bytes_of_token(token, &in_alphabet);
    if (!in_alphabet) continue;
    if (bytes.size() == 1) byte_ids_[static_cast<uint8_t>(bytes[0])] = id.get<int32_t>();
    if (ignore_merges_) whole_words_[std::move(bytes)] = id.get<int32_t>();
  }
}

int32_t BpeModel::id_of(const std::string& token, const std::string& source, const char* what) const {
  const auto found = vocabulary_.find(token);
  if (found == vocabulary_.end())
    fail(source, ": model: ", what, " names '", token, "', which the vocab lacks");
  return found->second;
}

void BpeModel::read_merges(const nlohmann::json& json, const std::string& source) {
  if (!json.is_array()) fail(source, ": model: merges expected a list");
  merges_.resize(std::bit_ceil(json.size() * 2 + 2));
  uint32_t rank = 0;
  for (const auto& item : json) {
    std::string left;
    std::string right;
    if (item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_string()) {
      left = item[0].get<std::string>();
      right = item[1].get<std::string>();
    } else if (item.is_string() && std::count(item.get_ref<const std::string&>().begin(),
                                              item.get_ref<const std::string&>().end(), ' ') == 1) {
      const auto& text = item.get_ref<const std::string&>();
      left = text.substr(0, text.find(' '));
      right = text.substr(text.find(' ') + 1);
    } else {
      fail(source, ": model: merges expected \"left right\" or [left, right], got ",
           item.dump().substr(0, 120));
    }
    const uint64_t pair = pair_of(id_of(left, source, "a merge"), id_of(right, source, "a merge"));
    insert_merge({pair, rank++, id_of(left + right, source, "a merge")});
  }
}

void BpeModel::insert_merge(const Merge& merge) {
  size_t slot = mix(merge.pair) & (merges_.size() - 1);
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != merge.pair)
    slot = (slot + 1) & (merges_.size() - 1);
  merges_[slot] = merge;
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  for (size_t slot = mix(pair) & (merges_.size() - 1);; slot = (slot + 1) & (merges_.size() - 1)) {
    if (merges_[slot].pair == pair) return &merges_[slot];
    if (merges_[slot].pair == kNoPair) return nullptr;
  }
}

void BpeModel::encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (word.size() > BpeScratch::kKeyBytes) return merge(word, scratch, ids);
  auto& entry = scratch.cache_[hash_bytes(word) & (kCacheEntries - 1)];
  if (entry.length == word.size() && std::memcmp(entry.key, word.data(), word.size()) == 0) {
    ids.insert(ids.end(), entry.ids, entry.ids + entry.count);
    return;
  }
  const size_t begin = ids.size();
  merge(word, scratch, ids);
  const size_t count = ids.size() - begin;
  if (count > BpeScratch::kIds) return;
  entry.length = static_cast<uint8_t>(word.size());
  entry.count = static_cast<uint8_t>(count);
  std::memcpy(entry.key, word.data(), word.size());
  std::copy(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), entry.ids);
}

/// One symbol per byte; a byte without a token becomes the unknown token or vanishes.
void BpeModel::start_symbols(std::string_view word, BpeScratch& scratch) const {
  auto& symbols = scratch.symbols_;
  symbols.clear();
  bool fusing = false;
  for (char c : word) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(c)];
    const bool unknown = id < 0;
    if (unknown && (unknown_ < 0 || (fusing && fuse_unknown_))) continue;
    fusing = unknown;
    const auto position = static_cast<int32_t>(symbols.size());
    symbols.push_back({unknown ? unknown_ : id, position - 1, position + 1});
  }
  if (!symbols.empty()) symbols.back().next = -1;
}

void BpeModel::push_candidate(BpeScratch& scratch, int32_t position) const {
  const auto& symbol = scratch.symbols_[position];
  if (symbol.next < 0) return;
  if (const Merge* merge = find_merge(symbol.id, scratch.symbols_[symbol.next].id)) {
    scratch.heap_.push_back({uint64_t{merge->rank} << 32 | static_cast<uint32_t>(position), merge->merged});
    std::push_heap(scratch.heap_.begin(), scratch.heap_.end());
  }
}

/// Applies the merge of the lowest rank (then the leftmost) until none is left: O(n log n) with a heap of
/// candidates, of which those that an earlier merge made stale are skipped.
void BpeModel::merge(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    if (const auto whole = whole_words_.find(std::string(word)); whole != whole_words_.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  start_symbols(word, scratch);
  auto& symbols = scratch.symbols_;
  if (symbols.empty()) return;
  auto& heap = scratch.heap_;
  heap.clear();
  for (size_t i = 0; i < symbols.size(); ++i) push_candidate(scratch, static_cast<int32_t>(i));
  constexpr int32_t kGone = -2;
  while (!heap.empty()) {
    const auto candidate = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    const auto position = static_cast<int32_t>(candidate.order & 0xFFFFFFFFu);
    auto& symbol = symbols[position];
    if (symbol.previous == kGone || symbol.next < 0) continue;
    auto& next = symbols[symbol.next];
    const Merge* current = find_merge(symbol.id, next.id);
    if (current == nullptr || current->merged != candidate.merged) continue;
    symbol.id = candidate.merged;
    next.previous = kGone;
    symbol.next = next.next;
    if (symbol.next >= 0) symbols[symbol.next].previous = position;
    if (symbol.previous >= 0) push_candidate(scratch, symbol.previous);
    push_candidate(scratch, position);
  }
  for (int32_t position = 0; position >= 0; position = symbols[position].next)
    ids.push_back(symbols[position].id);
}

}  // namespace gsa
