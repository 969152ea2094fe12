// SPDX-License-Identifier: Apache-2.0
// Follows one JSON value byte by byte: where it ends, or that it is none. Looser than a parser: numbers and literals
// are any of their characters, strings may hold control characters (models write both), so what it accepts still has to
// be parsed to be used.
#pragma once

#include <string>

namespace lk::openai {

class JsonScanner {
 public:
  enum class Step {
    kMore,
    kDone,        // the value ends with this byte
    kDoneBefore,  // it ended before this byte (numbers and literals at the top level), which was not taken
    kBad,         // not taken
  };
  Step feed(char c);

 private:
  enum class State { kValue, kFirstKey, kKey, kColon, kFirstItem, kAfter, kString, kEscape, kWord };
  Step open(char c);
  Step close(char c);
  Step after_value() { return state_ = State::kAfter, open_.empty() ? Step::kDone : Step::kMore; }

  State state_ = State::kValue;
  std::string open_;  // '{' and '[', innermost last
  bool in_key_ = false;
};

inline bool is_json_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

}  // namespace lk::openai
