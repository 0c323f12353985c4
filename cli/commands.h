#pragma once
// The subcommands. Each add_* function declares one and sets the callback that runs it.

#include <CLI/App.hpp>

namespace gsa::cli {

/// Adds every subcommand.
void add_commands(CLI::App& app);

void add_model(CLI::App& app);
void add_convert(CLI::App& app);
void add_eval(CLI::App& app);
void add_train(CLI::App& app);
void add_generate(CLI::App& app);

/// What main returns when no error was thrown: 0, or what a subcommand set.
int exit_status();
void set_exit_status(int status);

}  // namespace gsa::cli
