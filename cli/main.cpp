// gsa: the command line. One file per subcommand; they only parse, call the library and print.

#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "gsa/base/config.h"
#include "gsa/base/error.h"

namespace {

/// The first line of a message: what a user needs; the rest of a c10 error is a stack.
std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

/// One line for a command line that could not be read: an unknown command is named with the nearest known
/// one.
std::string parse_message(const CLI::App* app, const CLI::Error& error) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  std::string command = app->get_name();
  for (const CLI::App* parent = app->get_parent(); parent != nullptr; parent = parent->get_parent())
    command.insert(0, parent->get_name() + (command.empty() ? "" : " "));
  std::string message = first_line(error.what());
  std::vector<std::string> known;
  for (const CLI::App* child : app->get_subcommands({})) known.push_back(child->get_name());
  const std::vector<std::string> rest = app->remaining();
  if (!known.empty() && !rest.empty() && !rest.front().starts_with('-'))
    message = "unknown command '" + rest.front() + "'" + gsa::suggestion(rest.front(), known);
  return command + ": " + message + "; " + command + " --help tells more\n";
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Gated Sparse Attention: train, convert, evaluate and run long-context language models",
               "gsa"};
  app.require_subcommand(1);
  app.failure_message(parse_message);
  app.set_version_flag("--version", GSA_VERSION);
  try {
    gsa::cli::add_commands(app);
    app.parse(argc, argv);
    return gsa::cli::exit_status();
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  } catch (const gsa::Error& error) {
    std::fprintf(stderr, "gsa: %s\n", error.what());
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "gsa: %s\n", first_line(error.what_without_backtrace()).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gsa: %s\n", first_line(error.what()).c_str());
  }
  return 2;
}
