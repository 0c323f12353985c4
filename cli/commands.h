#pragma once
// The subcommands. Each add_* function declares one and sets the callback that runs it.

#include <CLI/App.hpp>
#include <string>

namespace gsa {
struct CorpusOptions;
}

namespace gsa::cli {

/// Adds every subcommand.
void add_commands(CLI::App& app);

void add_model(CLI::App& app);
void add_convert(CLI::App& app);
void add_data(CLI::App& app);
void add_tokenizer(CLI::App& app);
void add_bench(CLI::App& app);
void add_eval(CLI::App& app);
void add_train(CLI::App& app);
void add_generate(CLI::App& app);

/// The options that say which text to read, shared by the commands that read text.
void add_corpus_options(CLI::App& command, CorpusOptions& corpus, std::string& on_error);

/// What main returns when no error was thrown: 0, or what a subcommand set.
int exit_status();
void set_exit_status(int status);

}  // namespace gsa::cli
