#pragma once
// Text to token shards.

#include <cstdint>
#include <functional>
#include <string>

#include "gsa/base/json.h"
#include "gsa/text/corpus.h"

namespace gsa {

struct PrepareOptions {
  CorpusOptions corpus;
  std::string tokenizer;  // tokenizer.json or a folder that has one
  std::string output;     // the data folder to make
  bool overwrite = false;
  /// The share of documents held out for evaluation; see is_held_out.
  double held_out = 0.01;
  /// Ends each document: a token of the vocabulary; empty: the tokenizer's end-of-text token; "none":
  /// nothing.
  std::string separator;
  int threads = 0;  // 0: one per core
  int64_t shard_tokens = int64_t{1} << 26;
};

struct PrepareProgress {
  uint64_t bytes_read = 0;
  uint64_t bytes_total = 0;
  int64_t documents = 0;
  int64_t tokens = 0;
};

/// Tokenises the corpus in parallel into a new data folder (see token_shards.h), which appears whole or not
/// at all; the result does not depend on the number of threads. Returns the manifest. `progress` is called
/// from the calling thread. Throws Error for a missing input, a folder already there (without overwrite), a
/// corpus without a document, and, unless skip_bad, text that is not UTF-8.
Json prepare_data(const PrepareOptions& options,
                  const std::function<void(const PrepareProgress&)>& progress = {});

}  // namespace gsa
