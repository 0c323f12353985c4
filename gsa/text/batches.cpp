#include "gsa/text/batches.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>
#include <utility>

#include "gsa/base/error.h"
#include "gsa/text/token_shards.h"

namespace gsa {
namespace {

/// SplitMix64: the same numbers on every platform and standard library, unlike <random>'s distributions.
class Random {
 public:
  Random(uint64_t seed, uint64_t source, uint64_t epoch) : state_(seed) {
    state_ = bits() ^ source;
    state_ = bits() ^ epoch;
  }
  uint64_t bits() {
    state_ += 0x9E3779B97F4A7C15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  /// Uniform in [0, count).
  int64_t below(int64_t count) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(bits()) * static_cast<uint64_t>(count)) >>
                                64);
  }
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (auto left = static_cast<int64_t>(items.size()); left > 1; --left)
      std::swap(items[left - 1], items[below(left)]);
  }

 private:
  uint64_t state_;
};

int64_t number(const Json& state, const char* key) {
  if (!state.is_object() || !state.contains(key) || !state[key].is_number_integer())
    fail("data state: lacks a whole number '", key, "'");
  return state[key].get<int64_t>();
}

void check_same(const Json& state, const char* key, const Json& expected) {
  const Json got = state.is_object() && state.contains(key) ? state[key] : Json();
  if (got != expected)
    fail("data state: ", key, " expected ", expected.dump(), " as in this run, got ", got.dump());
}

}  // namespace

/// The windows of one source in the order of one epoch, and how many of them were taken.
class TokenBatches::Source {
 public:
  Source(const TokenSource& source, const TokenBatchOptions& options, uint64_t index)
      : shards(source.path, source.split),
        weight(source.weight),
        options_(options),
        index_(index),
        name_(source.path) {
    start_epoch(0);
    if (windows() == 0) fail_too_short();
  }

  int64_t windows() const {
    return static_cast<int64_t>(options_.packing == "packed" ? order_.size() : windows_.size());
  }

  /// Copies the next window of L + 1 tokens.
  void take(std::span<int64_t> out) {
    if (position_ == windows()) start_epoch(epoch_ + 1);
    if (options_.packing == "packed") {
      copy_packed(order_[position_] * options_.sequence_length, out);
    } else {
      const auto& [document, offset] = windows_[position_];
      shards.read(document, offset, out);
    }
    ++position_;
    ++taken;
  }

  Json state() const {
    return {
        {"documents", shards.documents()}, {"tokens", shards.tokens()}, {"weight", weight}, {"epoch", epoch_},
        {"position", position_},           {"sequences", taken}};
  }

  void set_state(const Json& state) {
    check_same(state, "documents", shards.documents());
    check_same(state, "tokens", shards.tokens());
    check_same(state, "weight", weight);
    const int64_t epoch = number(state, "epoch");
    const int64_t position = number(state, "position");
    const int64_t sequences = number(state, "sequences");
    if (epoch < 0 || position < 0 || position > windows() || sequences < 0) {
      fail("data state: no position ", position, " in epoch ", epoch, " of ", name_, ", which has ",
           windows(), " sequences");
    }
    start_epoch(epoch);
    position_ = position;
    taken = sequences;
  }

  TokenShards shards;
  double weight;
  int64_t taken = 0;

 private:
  void start_epoch(int64_t epoch) {
    epoch_ = epoch;
    position_ = 0;
    Random random(options_.seed, index_, static_cast<uint64_t>(epoch));
    if (options_.packing == "packed") {
      lay_out_documents(random);
    } else {
      cut_long_documents(random);
    }
  }

  /// `packed`: the documents of the epoch end to end, and the order in which their windows are taken.
  void lay_out_documents(Random& random) {
    documents_.resize(shards.documents());
    std::iota(documents_.begin(), documents_.end(), int64_t{0});
    if (options_.shuffle) random.shuffle(documents_);
    begins_.assign(1, 0);
    for (int64_t document : documents_) begins_.push_back(begins_.back() + shards.document_length(document));
    order_.resize(std::max<int64_t>(shards.tokens() - 1, 0) / options_.sequence_length);
    std::iota(order_.begin(), order_.end(), int64_t{0});
    if (options_.shuffle) random.shuffle(order_);
  }

  /// `windows`: each document longer than L gives as many windows as fit, from a random start when shuffled.
  void cut_long_documents(Random& random) {
    const int64_t length = options_.sequence_length;
    windows_.clear();
    for (int64_t document = 0; document < shards.documents(); ++document) {
      const int64_t targets = shards.document_length(document) - 1;
      if (targets < length) continue;
      const int64_t start = options_.shuffle ? random.below(targets % length + 1) : 0;
      for (int64_t at = start; at + length <= targets; at += length) windows_.emplace_back(document, at);
    }
    if (options_.shuffle) random.shuffle(windows_);
  }

  void copy_packed(int64_t begin, std::span<int64_t> out) const {
    auto place = std::upper_bound(begins_.begin(), begins_.end(), begin) - begins_.begin() - 1;
    while (!out.empty()) {
      const int64_t offset = begin - begins_[place];
      const int64_t count = std::min(begins_[place + 1] - begin, static_cast<int64_t>(out.size()));
      shards.read(documents_[place], offset, out.first(count));
      out = out.subspan(count);
      begin += count;
      ++place;
    }
  }

  [[noreturn]] void fail_too_short() const {
    int64_t longest = 0;
    for (int64_t document = 0; document < shards.documents(); ++document)
      longest = std::max(longest, shards.document_length(document));
    const bool packed = options_.packing == "packed";
    fail(name_, ": ", packed ? "expected at least " : "expected a document of at least ",
         options_.sequence_length + 1, " tokens for sequence_length ", options_.sequence_length, ", got ",
         packed ? shards.tokens() : longest);
  }

  const TokenBatchOptions options_;
  uint64_t index_;
  std::string name_;
  int64_t epoch_ = 0;
  int64_t position_ = 0;
  std::vector<int64_t> documents_;                    // packed: in the epoch's order
  std::vector<int64_t> begins_;                       // packed: where each begins
  std::vector<int64_t> order_;                        // packed: the windows in the epoch's order
  std::vector<std::pair<int64_t, int64_t>> windows_;  // windows: document and offset
};

TokenBatches::TokenBatches(const std::vector<TokenSource>& sources, const TokenBatchOptions& options)
    : options_(options) {
  if (sources.empty()) fail("data: expected at least one source");
  if (options.sequence_length < 1)
    fail("data: sequence_length expected at least 1, got ", options.sequence_length);
  if (options.batch_size < 1) fail("data: batch_size expected at least 1, got ", options.batch_size);
  if (options.packing != "packed" && options.packing != "windows") {
    fail("data: packing expected 'packed' or 'windows', got '", options.packing, "'");
  }
  for (const auto& source : sources) {
    if (!(source.weight > 0) || !std::isfinite(source.weight)) {
      fail("data: weight of ", source.path, " expected a positive number, got ", source.weight);
    }
    sources_.push_back(std::make_unique<Source>(source, options, sources_.size()));
    if (sources_.back()->shards.tokenizer_hash() != tokenizer_hash()) {
      fail("data: ", source.path, " was made with another tokenizer than ", sources.front().path);
    }
  }
}

TokenBatches::~TokenBatches() = default;
TokenBatches::TokenBatches(TokenBatches&&) noexcept = default;
TokenBatches& TokenBatches::operator=(TokenBatches&&) noexcept = default;

at::Tensor TokenBatches::next() {
  const int64_t tokens = options_.sequence_length + 1;
  at::Tensor batch = at::empty({options_.batch_size, tokens}, at::kLong);
  auto* row = batch.mutable_data_ptr<int64_t>();
  double weights = 0;
  int64_t taken = 0;
  for (const auto& source : sources_) {
    weights += source->weight;
    taken += source->taken;
  }
  for (int64_t i = 0; i < options_.batch_size; ++i, ++taken, row += tokens) {
    // The source that lags its share the most: exact shares without a random choice.
    Source* chosen = nullptr;
    double largest = 0;
    for (const auto& source : sources_) {
      const double lag =
          source->weight / weights * static_cast<double>(taken + 1) - static_cast<double>(source->taken);
      if (chosen == nullptr || lag > largest) {
        chosen = source.get();
        largest = lag;
      }
    }
    chosen->take({row, static_cast<size_t>(tokens)});
  }
  return batch;
}

Json TokenBatches::state() const {
  Json sources = Json::array();
  for (const auto& source : sources_) sources.push_back(source->state());
  return {{"seed", options_.seed},         {"sequence_length", options_.sequence_length},
          {"packing", options_.packing},   {"shuffle", options_.shuffle},
          {"tokenizer", tokenizer_hash()}, {"sources", sources}};
}

void TokenBatches::set_state(const Json& state) {
  check_same(state, "seed", options_.seed);
  check_same(state, "sequence_length", options_.sequence_length);
  check_same(state, "packing", options_.packing);
  check_same(state, "shuffle", options_.shuffle);
  check_same(state, "tokenizer", tokenizer_hash());
  if (!state.contains("sources") || state["sources"].size() != sources_.size()) {
    fail("data state: expected ", sources_.size(), " sources as in this run");
  }
  for (size_t i = 0; i < sources_.size(); ++i) sources_[i]->set_state(state["sources"][i]);
}

int64_t TokenBatches::sequences_per_epoch() const {
  int64_t sequences = 0;
  for (const auto& source : sources_) sequences += source->windows();
  return sequences;
}

const std::string& TokenBatches::tokenizer_hash() const {
  return sources_.front()->shards.tokenizer_hash();
}
int64_t TokenBatches::vocab_size() const {
  return sources_.front()->shards.vocab_size();
}

}  // namespace gsa
