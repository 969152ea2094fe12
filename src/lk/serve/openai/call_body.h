// SPDX-License-Identifier: Apache-2.0
// One tool call, read byte by byte as a model writes it: its function's name, then its arguments as JSON, as they come.
#pragma once

#include <string>
#include <string_view>

namespace lk::openai {

class CallBody {
 public:
  virtual ~CallBody() = default;

  enum class Step { kMore, kDone, kBad };  // kBad: the byte was not taken
  // Appends what is now known to `arguments`; the call has begun once begun().
  virtual Step feed(char c, std::string& arguments) = 0;
  virtual bool begun() const = 0;
  virtual bool arguments_done() const = 0;
  virtual const std::string& name() const = 0;  // Requires: begun
};

inline constexpr size_t kMaxCallName = 256;

// A byte inside a JSON string.
void append_escaped(std::string& out, char c);
// A JSON value for a word that a model wrote: a number, a truth value or null as in JSON or Python, else a string.
void append_word(std::string& out, std::string_view word);

}  // namespace lk::openai
