// SPDX-License-Identifier: Apache-2.0
// Reads {"name": ..., "arguments": {...}} byte by byte, as models write tool calls ("parameters" is the same). The name
// is known before the object ends, and the arguments pass through as they are written.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lk/serve/openai/call_body.h"
#include "lk/serve/openai/json_scanner.h"

namespace lk::openai {

class CallObject final : public CallBody {
 public:
  // `names`: the only names that are calls; null = any.
  explicit CallObject(const std::vector<std::string>* names) : names_(names) {}

  Step feed(char c, std::string& arguments) override;
  bool begun() const override { return begun_; }
  bool arguments_done() const override { return arguments_done_; }
  const std::string& name() const override { return *name_; }

 private:
  enum class State { kOpen, kFirstKey, kKey, kInKey, kColon, kValue, kInValue, kAfter };
  bool begin_value(char c, std::string& arguments);
  bool end_key();
  bool end_value(std::string& arguments);
  bool begin(std::string& arguments);

  const std::vector<std::string>* names_;
  State state_ = State::kOpen;
  JsonScanner scanner_;
  std::string key_, value_;  // raw
  std::optional<std::string> name_, arguments_;
  bool begun_ = false, passing_ = false, arguments_done_ = false;
};

}  // namespace lk::openai
