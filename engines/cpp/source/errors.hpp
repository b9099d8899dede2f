// Errors with the sentences of the Python package.
#pragma once

#include <string>
#include <utility>

#include "infid/infid.hpp"

namespace infid {

[[noreturn]] inline void fail(ErrorKind kind, std::string problem, std::string fix) {
  throw Error(kind, std::move(problem), std::move(fix));
}

[[noreturn]] inline void input_error(std::string problem, std::string fix) {
  fail(ErrorKind::input, std::move(problem), std::move(fix));
}

[[noreturn]] inline void folder_error(std::string problem, std::string fix) {
  fail(ErrorKind::engine_folder, std::move(problem), std::move(fix));
}

[[noreturn]] inline void unavailable(std::string problem, std::string fix) {
  fail(ErrorKind::backend_unavailable, std::move(problem), std::move(fix));
}

// A file or document that is not what it should be; the callers say which file it is and what to do. Like Python's
// ValueError, it never leaves the library.
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A text of a document for messages, as `infid_engines.documents._kind` writes it: Python's repr, after 39 characters
// "…" if it has more than 40.
std::string quoted(const std::string& text);
// An argument for messages, as `infid_engines.validation.shown` writes it: Python's repr, without its middle if it has
// more than 80 characters. A byte that is not UTF-8 is written as Python writes it in arguments of a command: \udcff.
std::string shown(const std::string& text);
// A number as Python's str writes it: 1.0, 1e-05, 0.00085.
std::string python_number(double value);

}  // namespace infid
