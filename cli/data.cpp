// gsa data prepare: files to token shards.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "gsa/text/prepare.h"

namespace gsa::cli {
namespace {

/// A bar on one line of stderr, redrawn ten times a second at most; nothing when stderr is not a terminal.
class ProgressBar {
 public:
  void show(const PrepareProgress& progress) {
    const auto now = std::chrono::steady_clock::now();
    if (!terminal_ || now - drawn_ < std::chrono::milliseconds(100)) return;
    drawn_ = now;
    constexpr int kWidth = 30;
    const double total = static_cast<double>(std::max<uint64_t>(progress.bytes_total, 1));
    const double share = std::min(1.0, static_cast<double>(progress.bytes_read) / total);
    const double seconds = std::chrono::duration<double>(now - started_).count();
    const int filled = static_cast<int>(share * kWidth);
    fmt::print(stderr, "\r[{:#<{}}{:.<{}}] {:3.0f} %  {} documents  {:.1f} M tokens  {:.1f} MB/s\033[K", "",
               filled, "", kWidth - filled, 100 * share, progress.documents,
               static_cast<double>(progress.tokens) / 1e6,
               static_cast<double>(progress.bytes_read) / 1e6 / seconds);
  }
  void clear() const {
    if (terminal_) fmt::print(stderr, "\r\033[K");
  }

 private:
  bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point drawn_{};
};

void print_summary(const Json& manifest, const std::string& output) {
  constexpr size_t kNamed = 10;
  const Json& skipped = manifest["skipped"];
  for (size_t i = 0; i < std::min(kNamed, skipped.size()); ++i) {
    fmt::print(stderr, "skipped {}: {}\n", skipped[i]["where"].get<std::string>(),
               skipped[i]["reason"].get<std::string>());
  }
  if (skipped.size() > kNamed)
    fmt::print(stderr, "skipped {} more, listed in {}/manifest.json\n", skipped.size() - kNamed, output);
  fmt::print("{}: {} files\n", output, manifest["sources"].size());
  for (const auto& [name, split] : manifest["splits"].items()) {
    const auto tokens = split["tokens"].get<int64_t>();
    const auto bytes = split["bytes"].get<double>();
    fmt::print("  {:<9} {:>10} documents {:>14} tokens  {:.2f} bytes a token  {} shards\n", name,
               split["documents"].get<int64_t>(), tokens,
               tokens > 0 ? bytes / static_cast<double>(tokens) : 0.0, split["shards"].size());
  }
}

void prepare(PrepareOptions& options, const std::string& on_error) {
  options.corpus.skip_bad = on_error == "skip";
  ProgressBar bar;
  Json manifest;
  try {
    manifest = prepare_data(options, [&](const PrepareProgress& progress) { bar.show(progress); });
  } catch (...) {
    bar.clear();
    throw;
  }
  bar.clear();
  print_summary(manifest, options.output);
}

}  // namespace

void add_corpus_options(CLI::App& command, CorpusOptions& corpus, std::string& on_error) {
  command
      .add_option("inputs", corpus.inputs,
                  "files, folders and globs; .jsonl and .ndjson files hold a document a line")
      ->required();
  command
      .add_option("--extensions", corpus.extensions,
                  "which files of a folder count, e.g. py,md (default: all)")
      ->delimiter(',');
  command.add_option("--field", corpus.field, "the field of a JSON line that holds the text")
      ->capture_default_str();
  command
      .add_option("--on-error", on_error,
                  "what to do with text that is not UTF-8: fail, or skip it and say so")
      ->check(CLI::IsMember({"fail", "skip"}))
      ->capture_default_str();
}

void add_data(CLI::App& app) {
  auto* data = app.add_subcommand("data", "Make training data");
  data->require_subcommand(1);
  auto* command =
      data->add_subcommand("prepare", "Tokenise files into shards, with documents held out for evaluation");
  auto options = std::make_shared<PrepareOptions>();
  auto on_error = std::make_shared<std::string>("fail");
  add_corpus_options(*command, options->corpus, *on_error);
  command->add_option("-t,--tokenizer", options->tokenizer, "tokenizer.json, or a folder that has one")
      ->required();
  command->add_option("-o,--output", options->output, "the data folder to make")->required();
  command->add_flag("--overwrite", options->overwrite, "replace the folder when it exists");
  command
      ->add_option("--held-out", options->held_out,
                   "share of the documents to hold out, by the hash of their content")
      ->capture_default_str();
  command->add_option("--separator", options->separator,
                      "token that ends a document, or 'none' (default: the end-of-text token)");
  command->add_option("--threads", options->threads, "threads (default: one per core)");
  command->add_option("--shard-tokens", options->shard_tokens, "tokens of a shard")->capture_default_str();
  command->callback([options, on_error] { prepare(*options, *on_error); });
}

}  // namespace gsa::cli
