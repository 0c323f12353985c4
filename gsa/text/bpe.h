#pragma once
// Byte-pair encoding of single words.

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace gsa {

/// What one thread needs to encode words: a cache of recent words and the buffers of the merge loop.
class BpeScratch {
 public:
  BpeScratch();

 private:
  friend class BpeModel;
  static constexpr size_t kKeyBytes = 27;
  static constexpr size_t kIds = 8;
  /// One cache line holds a word and its ids; words that do not fit are not cached.
  struct alignas(64) Entry {
    uint8_t length = 0;
    uint8_t count = 0;
    char key[kKeyBytes + 3];
    int32_t ids[kIds];
  };
  struct Symbol {
    int32_t id;
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    uint64_t order;  // rank of the merge, then position
    int32_t merged;
    bool operator<(const Candidate& other) const {
      return order > other.order;
    }  // the heap's top is the smallest
  };

  std::vector<Entry> cache_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

/// The "model" of a tokenizer.json, which must be BPE over the byte alphabet.
class BpeModel {
 public:
  /// Throws Error, naming `source`, for another model, an option it does not have, or a merge of tokens that
  /// do not exist.
  BpeModel(const nlohmann::json& json, const std::string& source);

  /// Appends the ids of a word.
  void encode(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

  /// The vocabulary: token as spelled in the file, id.
  const std::unordered_map<std::string, int32_t>& vocabulary() const { return vocabulary_; }

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void read_vocabulary(const nlohmann::json& json, const std::string& source);
  void read_merges(const nlohmann::json& json, const std::string& source);
  int32_t id_of(const std::string& token, const std::string& source, const char* what) const;
  const Merge* find_merge(int32_t left, int32_t right) const;
  void insert_merge(const Merge& merge);
  void push_candidate(BpeScratch& scratch, int32_t position) const;
  void start_symbols(std::string_view word, BpeScratch& scratch) const;
  void merge(std::string_view word, BpeScratch& scratch, std::vector<int32_t>& ids) const;

  std::unordered_map<std::string, int32_t> vocabulary_;
  std::unordered_map<std::string, int32_t> whole_words_;  // by their bytes; filled for ignore_merges
  std::array<int32_t, 256> byte_ids_;                     // -1: the byte has no token
  std::vector<Merge> merges_;                             // open addressing, a power of two
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;
};

}  // namespace gsa
