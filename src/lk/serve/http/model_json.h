// SPDX-License-Identifier: Apache-2.0
// Models as /v1/models shows them, in OpenAI's shape with vLLM's additions.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lk {

class ModelList {
 public:
  // `started`: when the server was, Unix seconds: the age of what has none of its own.
  ModelList(std::string base, int64_t started) : base_(std::move(base)), started_(started) {}
  void add_base(std::string_view id, std::string_view root, int64_t context);  // under one of its names
  void add(std::string_view id, std::string_view root, int64_t created);       // created 0: not known
  // {"object": "list", "data": [...], "first_id", "last_id", "has_more"}
  std::string text(bool has_more) const;
  // The only entry, by itself.
  std::string single() const { return data_; }

 private:
  void append(std::string_view id, std::string_view root, bool is_base, int64_t context, int64_t created);
  const std::string base_;
  const int64_t started_;
  std::string data_;  // objects with commas between them
  std::string first_, last_;
};

}  // namespace lk
