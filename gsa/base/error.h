#pragma once
// How the library says that the caller's input is wrong: one line that names the place, what was expected and
// what came.

#include <sstream>
#include <stdexcept>
#include <string>

namespace gsa {

/// A user's mistake (a bad file, option or configuration), described in one line. The command line prints it
/// and exits 2. The ops throw c10::ValueError / c10::TypeError instead, so that Python sees ValueError and
/// TypeError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with the parts joined, e.g. fail("config: 'steps' expected a positive number, got ", steps).
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(message.str());
}

}  // namespace gsa
