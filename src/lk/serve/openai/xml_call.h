// SPDX-License-Identifier: Apache-2.0
// Reads the calls of Qwen3-Coder:
//   <function=NAME>
//   <parameter=KEY>
//   VALUE
//   </parameter>
//   </function>
// Values are bare text; which of them are JSON the functions' schemas say. Texts pass through as they are written.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include <boost/json/array.hpp>

#include "lk/serve/openai/call_body.h"

namespace lk::openai {

enum class ParameterKind : uint8_t { kText, kTextOrNull, kJson };

// Of the parameters of functions. What a schema does not say is text.
class ParameterKinds {
 public:
  explicit ParameterKinds(const boost::json::array& tools);
  ParameterKind find(const std::string& function, const std::string& parameter) const;

 private:
  std::map<std::string, std::map<std::string, ParameterKind>> kinds_;
};

class XmlCall final : public CallBody {
 public:
  explicit XmlCall(std::shared_ptr<const ParameterKinds> kinds) : kinds_(std::move(kinds)) {}
  Step feed(char c, std::string& arguments) override;
  bool begun() const override { return begun_; }
  bool arguments_done() const override { return arguments_done_; }
  const std::string& name() const override { return name_; }

 private:
  enum class State { kHead, kName, kBody, kKey, kValue };
  Step tag(char c, std::string& arguments);
  Step value(char c, std::string& arguments);
  void value_byte(char c, std::string& arguments);
  void begin_value(std::string& arguments);
  void end_value(std::string& arguments);
  void end(std::string& arguments);

  std::shared_ptr<const ParameterKinds> kinds_;  // may be null: all are text
  State state_ = State::kHead;
  std::string name_, key_, held_, value_;
  bool begun_ = false, arguments_done_ = false, any_ = false;
  bool at_start_ = false;
  ParameterKind kind_ = ParameterKind::kText;
};

}  // namespace lk::openai
