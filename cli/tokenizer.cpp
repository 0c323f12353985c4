// gsa tokenizer train | encode | decode.

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/error.h"
#include "gsa/base/json.h"
#include "gsa/text/corpus.h"
#include "gsa/text/tokenizer.h"

namespace gsa::cli {
namespace {

namespace fs = std::filesystem;

struct TrainArguments {
  CorpusOptions corpus;
  std::string on_error = "fail";
  std::string output;
  std::string pattern = "llama3";
  int64_t vocab_size = 32000;
  std::vector<std::string> special;
};

/// The folder that has tools/train_tokenizer.py: the source tree that this program was built in, or
/// <prefix>/share/gsa.
fs::path find_tools() {
  for (fs::path folder = fs::canonical("/proc/self/exe").parent_path(); folder != folder.root_path();
       folder = folder.parent_path()) {
    for (const fs::path& root : {folder, folder / "share" / "gsa"}) {
      if (fs::exists(root / "tools" / "train_tokenizer.py")) return root;
    }
  }
  fail("gsa tokenizer train: tools/train_tokenizer.py is neither above this program nor in share/gsa");
}

/// GSA_PYTHON, else the project's virtual environment, else python3.
std::string find_python(const fs::path& root) {
  if (const char* python = std::getenv("GSA_PYTHON")) return python;
  const fs::path own = root / ".venv" / "bin" / "python";
  return fs::exists(own) ? own.string() : "python3";
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string train_command(const TrainArguments& arguments) {
  const fs::path root = find_tools();
  std::string command =
      shell_quoted(find_python(root)) + " " + shell_quoted((root / "tools" / "train_tokenizer.py").string());
  command += " --out " + shell_quoted(arguments.output) + " --pattern " + shell_quoted(arguments.pattern) +
             " --vocab-size " + std::to_string(arguments.vocab_size);
  for (const auto& token : arguments.special) command += " --special " + shell_quoted(token);
  return command;
}

/// Streams the documents to the `tokenizers` package, one JSON string a line.
void train(TrainArguments& arguments) {
  arguments.corpus.skip_bad = arguments.on_error == "skip";
  CorpusReader reader(arguments.corpus);
  ::signal(SIGPIPE, SIG_IGN);  // a trainer that gives up early has said why
  std::FILE* pipe = ::popen(train_command(arguments).c_str(), "w");
  if (pipe == nullptr) fail("gsa tokenizer train: cannot start python");
  bool listening = true;
  std::string problem;
  try {
    for (auto document = reader.next(); document && listening; document = reader.next()) {
      const std::string line = Json(document->text).dump() + "\n";
      listening = std::fwrite(line.data(), 1, line.size(), pipe) == line.size();
    }
  } catch (const Error& error) {
    problem = error.what();
    // Half a corpus must not become a tokenizer: this line is no JSON, and the trainer stops at it.
    std::fputs("stop\n", pipe);
  }
  const int status = ::pclose(pipe);
  if (!problem.empty()) fail(problem);
  if (status != 0)
    fail("gsa tokenizer train: the trainer failed (see above; it needs the tokenizers package)");
  for (const auto& [where, reason] : reader.skipped()) fmt::print(stderr, "skipped {}: {}\n", where, reason);
  const Tokenizer tokenizer = Tokenizer::load(arguments.output);
  fmt::print("{}: {} tokens, {}\n", arguments.output, tokenizer.vocab_size(), tokenizer.hash());
}

std::string standard_input() {
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

void encode(const std::string& path, const std::string& text, bool special, bool count) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  const auto started = std::chrono::steady_clock::now();
  const auto ids = tokenizer.encode(text, special);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  if (count) {
    const auto bytes = static_cast<double>(text.size());
    fmt::print("{} tokens, {:.2f} bytes a token, {:.1f} MB/s\n", ids.size(),
               bytes / static_cast<double>(std::max<size_t>(ids.size(), 1)), bytes / 1e6 / seconds);
    return;
  }
  for (size_t i = 0; i < ids.size(); ++i) fmt::print("{}{}", i > 0 ? " " : "", ids[i]);
  fmt::print("\n");
}

void decode(const std::string& path, std::vector<int32_t> ids, bool skip_special) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  if (ids.empty()) {
    for (std::string word; std::cin >> word;) {
      char* end = nullptr;
      const long id = std::strtol(word.c_str(), &end, 10);
      if (*end != '\0' || id < 0 || id > INT32_MAX)
        fail("gsa tokenizer decode: expected token ids, got '", word, "'");
      ids.push_back(static_cast<int32_t>(id));
    }
  }
  fmt::print("{}\n", tokenizer.decode(ids, skip_special));
}

void add_tokenizer_train(CLI::App& tokenizer) {
  auto* command =
      tokenizer.add_subcommand("train", "Train a byte-level BPE tokenizer (with the tokenizers package)");
  auto arguments = std::make_shared<TrainArguments>();
  add_corpus_options(*command, arguments->corpus, arguments->on_error);
  command->add_option("-o,--output", arguments->output, "the tokenizer.json to write")->required();
  command->add_option("--vocab-size", arguments->vocab_size, "tokens")->capture_default_str();
  command->add_option("--pattern", arguments->pattern, "whose way of cutting text into words")
      ->check(CLI::IsMember({"gpt2", "llama3", "qwen", "smollm"}))
      ->capture_default_str();
  command->add_option("--special", arguments->special, "a further special token (may be repeated)");
  command->callback([arguments] { train(*arguments); });
}

struct CodeArguments {
  std::string tokenizer, text;
  std::vector<int32_t> ids;
  bool special = false, count = false;
};

}  // namespace

void add_tokenizer(CLI::App& app) {
  auto* tokenizer = app.add_subcommand("tokenizer", "Train and use tokenizers");
  tokenizer->require_subcommand(1);
  add_tokenizer_train(*tokenizer);

  auto arguments = std::make_shared<CodeArguments>();
  auto* to_ids = tokenizer->add_subcommand("encode", "Print the token ids of a text");
  to_ids->add_option("-t,--tokenizer", arguments->tokenizer, "tokenizer.json, or a folder that has one")
      ->required();
  auto* text = to_ids->add_option("text", arguments->text, "the text (default: standard input)");
  to_ids->add_flag("--special", arguments->special, "with the special tokens that begin and end a text");
  to_ids->add_flag("--count", arguments->count, "print the number of tokens and the speed instead");
  to_ids->callback([arguments, text] {
    encode(arguments->tokenizer, text->count() > 0 ? arguments->text : standard_input(), arguments->special,
           arguments->count);
  });

  auto* to_text = tokenizer->add_subcommand("decode", "Print the text of token ids");
  to_text->add_option("-t,--tokenizer", arguments->tokenizer, "tokenizer.json, or a folder that has one")
      ->required();
  to_text->add_option("ids", arguments->ids, "the ids (default: standard input)");
  to_text->add_flag("--skip-special", arguments->special, "leave special tokens out");
  to_text->callback([arguments] { decode(arguments->tokenizer, arguments->ids, arguments->special); });
}

}  // namespace gsa::cli
