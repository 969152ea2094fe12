// SPDX-License-Identifier: Apache-2.0
// Reads the calls of Llama 3.2 and 4: name(key="value", other=[1, None]). Literals of Python become JSON as they come.
#pragma once

#include <string>
#include <vector>

#include "lk/serve/openai/call_body.h"

namespace lk::openai {

class PythonValue {
 public:
  enum class Step {
    kMore,
    kDone,        // the value ends with this byte
    kDoneBefore,  // it ended before this byte, which was not taken
    kBad,         // not taken
  };
  Step feed(char c, std::string& json);

 private:
  enum class State { kValue, kFirst, kFirstKey, kKey, kColon, kAfter, kString, kEscape, kHex, kWord };
  Step open(char c, std::string& json);
  Step close(char c, std::string& json);
  Step escape(char c, std::string& json);
  Step end_value() { return state_ = State::kAfter, open_.empty() ? Step::kDone : Step::kMore; }

  State state_ = State::kValue;
  std::string open_;  // '{', '[' and '(', innermost last
  char quote_ = '"';
  bool in_key_ = false, comma_ = false;
  std::string word_, hex_;
  size_t num_hex_ = 0;
};

class PythonCall final : public CallBody {
 public:
  // `names`: the only names that are calls; null = any.
  explicit PythonCall(const std::vector<std::string>* names) : names_(names) {}
  Step feed(char c, std::string& arguments) override;
  bool begun() const override { return begun_; }
  bool arguments_done() const override { return arguments_done_; }
  const std::string& name() const override { return name_; }

 private:
  enum class State { kName, kFirstKey, kNextKey, kKey, kEquals, kValue, kAfter };
  Step key(char c, std::string& arguments);
  Step end(std::string& arguments);

  const std::vector<std::string>* names_;
  State state_ = State::kName;
  std::string name_, key_;
  PythonValue value_;
  bool begun_ = false, arguments_done_ = false, any_ = false;
};

}  // namespace lk::openai
