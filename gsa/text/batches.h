#pragma once
// Batches of token sequences from weighted sources, resumable to the bit.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gsa/base/json.h"

namespace gsa {

/// One data folder (see token_shards.h) and its share of the sequences.
struct TokenSource {
  std::string path;
  double weight = 1;
  std::string split = "train";
  template <class Visitor>
  void fields(Visitor&& field) {
    field("path", path);
    field("weight", weight);
    field("split", split);
  }
};

struct TokenBatchOptions {
  /// L: a batch holds L + 1 tokens a sequence, so that inputs and next-token targets are both L long.
  int64_t sequence_length = 1024;
  int64_t batch_size = 1;
  uint64_t seed = 0;
  /// `packed`: the shuffled documents laid end to end and cut every L tokens. `windows`: only windows inside
  /// one document that is longer than L, for long-context training and evaluation; shorter documents are left
  /// out.
  std::string packing = "packed";
  /// Without: documents and windows in file order, for evaluation.
  bool shuffle = true;
  template <class Visitor>
  void fields(Visitor&& field) {
    field("sequence_length", sequence_length);
    field("batch_size", batch_size);
    field("seed", seed);
    field("packing", packing);
    field("shuffle", shuffle);
  }
};

/// An endless stream of batches. Of any n sequences each source gives its share (weight / sum of weights) of
/// n, to within the number of sources; within a source every window comes once per epoch, in an order that
/// `seed` and the epoch decide.
class TokenBatches {
 public:
  /// Error when there is no source, a weight is not positive, the sources' tokenizers differ, or a source has
  /// too few tokens for one sequence.
  TokenBatches(const std::vector<TokenSource>& sources, const TokenBatchOptions& options);
  ~TokenBatches();
  TokenBatches(TokenBatches&&) noexcept;
  TokenBatches& operator=(TokenBatches&&) noexcept;

  /// int64 [batch_size, sequence_length + 1].
  at::Tensor next();

  /// Where the stream stands. A TokenBatches made with the same sources and options goes on from there
  /// exactly (the batch size may differ: the sequences stay the same); set_state throws Error when they are
  /// not the same.
  Json state() const;
  void set_state(const Json& state);

  /// Sequences that one pass over every source gives.
  int64_t sequences_per_epoch() const;
  /// The common tokenizer of the sources; compare with Tokenizer::hash().
  const std::string& tokenizer_hash() const;
  int64_t vocab_size() const;

 private:
  class Source;
  std::vector<std::unique_ptr<Source>> sources_;
  TokenBatchOptions options_;
};

}  // namespace gsa
