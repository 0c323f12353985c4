#include "gsa/text/prepare.h"

#include <algorithm>
#include <deque>
#include <filesystem>
#include <future>
#include <thread>
#include <vector>

#include "gsa/base/error.h"
#include "gsa/base/file.h"
#include "gsa/io/checkpoint_folder.h"
#include "gsa/text/token_shards.h"
#include "gsa/text/tokenizer.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBatchBytes = 1 << 18;  // what one thread tokenises at a time

struct EncodedDocument {
  std::vector<int32_t> tokens;
  size_t file = 0;
  uint64_t bytes = 0;
  bool held_out = false;
};

std::optional<int32_t> separator_of(const PrepareOptions& options, const Tokenizer& tokenizer) {
  if (options.separator == "none") return std::nullopt;
  if (options.separator.empty()) return tokenizer.end_of_text();
  const auto id = tokenizer.token_id(options.separator);
  if (!id) fail("--separator: ", tokenizer.path().string(), " has no token '", options.separator, "'");
  return id;
}

std::vector<EncodedDocument> encode_batch(const Tokenizer& tokenizer, const std::vector<Document>& documents,
                                          std::optional<int32_t> separator, double held_out) {
  std::vector<EncodedDocument> encoded;
  for (const auto& document : documents) {
    auto& result = encoded.emplace_back();
    result.tokens = tokenizer.encode_ordinary(document.text);
    if (separator) result.tokens.push_back(*separator);
    result.file = document.file;
    result.bytes = document.text.size();
    result.held_out = is_held_out(document.text, held_out);
  }
  return encoded;
}

std::vector<Document> read_batch(CorpusReader& reader) {
  std::vector<Document> batch;
  for (size_t bytes = 0; bytes < kBatchBytes;) {
    auto document = reader.next();
    if (!document) break;
    bytes += document->text.size();
    batch.push_back(std::move(*document));
  }
  return batch;
}

/// Counts of one split or one file.
struct Counts {
  int64_t documents = 0;
  int64_t tokens = 0;
  uint64_t bytes = 0;
  void add(const EncodedDocument& document) {
    ++documents;
    tokens += static_cast<int64_t>(document.tokens.size());
    bytes += document.bytes;
  }
};

/// Collects what was encoded, in the order of the corpus.
class DataFolder {
 public:
  DataFolder(const PrepareOptions& options, const Tokenizer& tokenizer, const CorpusReader& reader)
      : options_(options),
        tokenizer_(tokenizer),
        reader_(reader),
        folder_(options.output),
        train_(folder_.path(), std::string(kTrainSplit), tokenizer.vocab_size(), options.shard_tokens),
        held_out_(folder_.path(), std::string(kHeldOutSplit), tokenizer.vocab_size(), options.shard_tokens),
        by_file_(reader.files().size()) {}

  void add(const std::vector<EncodedDocument>& documents) {
    for (const auto& document : documents) {
      (document.held_out ? held_out_ : train_).add_document(document.tokens);
      (document.held_out ? held_out_counts_ : train_counts_).add(document);
      by_file_[document.file].add(document);
    }
  }

  int64_t documents() const { return train_counts_.documents + held_out_counts_.documents; }
  int64_t tokens() const { return train_counts_.tokens + held_out_counts_.tokens; }

  Json finish(std::optional<int32_t> separator) {
    Json manifest = {{"format", "gsa token shards"}, {"version", 1}};
    manifest["tokenizer"] = {
        {"file", "tokenizer.json"}, {"hash", tokenizer_.hash()}, {"vocab_size", tokenizer_.vocab_size()}};
    manifest["separator"] = separator ? Json(*separator) : Json(nullptr);
    manifest["held_out"] = options_.held_out;
    manifest["splits"][std::string(kTrainSplit)] = split(train_, train_counts_);
    manifest["splits"][std::string(kHeldOutSplit)] = split(held_out_, held_out_counts_);
    manifest["sources"] = Json::array();
    for (size_t i = 0; i < by_file_.size(); ++i) {
      if (by_file_[i].documents == 0) continue;
      manifest["sources"].push_back({{"file", reader_.files()[i].string()},
                                     {"documents", by_file_[i].documents},
                                     {"tokens", by_file_[i].tokens},
                                     {"bytes", by_file_[i].bytes}});
    }
    manifest["skipped"] = Json::array();
    for (const auto& [where, reason] : reader_.skipped())
      manifest["skipped"].push_back({{"where", where}, {"reason", reason}});
    write_file(folder_.path() / "tokenizer.json", read_file(tokenizer_.path()));
    write_json(folder_.path() / "manifest.json", manifest);
    folder_.commit();
    return manifest;
  }

 private:
  static Json split(TokenShardWriter& writer, const Counts& counts) {
    Json entry = writer.finish();
    entry["bytes"] = counts.bytes;
    return entry;
  }

  const PrepareOptions& options_;
  const Tokenizer& tokenizer_;
  const CorpusReader& reader_;
  AtomicFolder folder_;
  TokenShardWriter train_;
  TokenShardWriter held_out_;
  Counts train_counts_;
  Counts held_out_counts_;
  std::vector<Counts> by_file_;
};

void check(const PrepareOptions& options) {
  if (!(options.held_out >= 0 && options.held_out < 1))
    fail("--held-out: expected a share from 0 to below 1, got ", options.held_out);
  if (options.shard_tokens < 1) fail("--shard-tokens: expected at least 1, got ", options.shard_tokens);
  if (options.output.empty()) fail("--output: expected a folder to make");
  if (!fs::exists(options.output)) return;
  if (!options.overwrite) fail(options.output, ": already exists (--overwrite replaces it)");
  // --overwrite must never remove what this program did not make.
  if (!fs::exists(fs::path(options.output) / "manifest.json"))
    fail(options.output, ": is not a data folder, so it is not overwritten");
}

}  // namespace

Json prepare_data(const PrepareOptions& options,
                  const std::function<void(const PrepareProgress&)>& progress) {
  check(options);
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const auto separator = separator_of(options, tokenizer);
  CorpusReader reader(options.corpus);
  DataFolder folder(options, tokenizer, reader);
  const size_t threads =
      options.threads > 0 ? options.threads : std::max(1u, std::thread::hardware_concurrency());
  // A sliding window of batches: this thread reads ahead and writes in order, the others tokenise.
  std::deque<std::future<std::vector<EncodedDocument>>> window;
  for (bool more = true; more || !window.empty();) {
    while (more && window.size() < threads) {
      auto batch = read_batch(reader);
      more = !batch.empty();
      if (!more) break;
      window.push_back(std::async(std::launch::async, [&, batch = std::move(batch)] {
        return encode_batch(tokenizer, batch, separator, options.held_out);
      }));
    }
    if (window.empty()) break;
    folder.add(window.front().get());
    window.pop_front();
    if (progress) progress({reader.bytes_read(), reader.bytes_total(), folder.documents(), folder.tokens()});
  }
  if (folder.documents() == 0) fail("no document with any text in the input");
  return folder.finish(separator);
}

}  // namespace gsa
