// gsa: the command line. One file per subcommand; they only parse, call the library and print.

#include <c10/util/Exception.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "cli/commands.h"
#include "gsa/base/error.h"

namespace {

/// The first line of a message: what a user needs; the rest of a c10 error is a stack.
std::string first_line(const std::string& text) {
  return text.substr(0, text.find('\n'));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Gated Sparse Attention: train, convert, evaluate and run long-context language models"};
  app.require_subcommand(1);
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
