// SPDX-License-Identifier: Apache-2.0
// Requests of other APIs told as the chat request that they mean. Each is read by the rows of its own form, and what
// comes of it by those of chat: so the same conversation with the same seed gives the same answer whichever API it came
// by. What the second reading refuses is said in the words of the first.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include <boost/json.hpp>

#include "lk/serve/openai/parse.h"

namespace lk::openai {

class ChatDraft {
 public:
  explicit ChatDraft(boost::json::storage_ptr storage) : body_(storage), messages_(storage) {}

  // Takes over the fields that the form shares with chat.
  void take_shared(RequestFields& fields, uint64_t form);
  // A field of the chat request, and what its own request calls it.
  void put(std::string_view name, boost::json::value value, std::string own);
  // A variable of the chat template, unless the request sets it itself: whether the model shall think.
  void set_thinking(bool on);
  // Further names of parts: the chat's path, and its own.
  void rename(std::string chat, std::string own) { renamed_.emplace_back(std::move(chat), std::move(own)); }
  // A message, and what it is told after. Where it stands in chat: "messages[3]".
  std::string add_message(boost::json::object message, std::string own);
  // What the assistant says goes into one message until somebody else speaks. Null: there is none that is open.
  boost::json::object* open_turn() { return open_ ? &messages_.back().get_object() : nullptr; }
  void open(bool open) { open_ = open; }
  bool has(std::string_view name) const { return body_.contains(name); }
  // Of the latest message, and of the one that comes next.
  std::string next_path() const { return fmt::format("messages[{}]", messages_.size()); }
  std::string last_path() const { return fmt::format("messages[{}]", messages_.size() - 1); }

  // Reads it as a chat request that is answered at `endpoint`.
  ApiResult<GenerateRequest> read(Endpoint endpoint, const ApiDefaults& defaults, RequestFields& own,
                                  std::vector<std::string> ignored);

 private:
  boost::json::object body_;
  boost::json::array messages_;
  FieldNames renamed_;
  bool open_ = false;
};

// A content of parts, with the types that chat knows: `known` are those of its own API that are texts there.
boost::json::value content_as_chat(const boost::json::value& content, const std::string& path, uint64_t part_form,
                                   std::span<const std::string_view> known, JsonErrors& errors,
                                   std::vector<std::string>& ignored);

// parse.cpp: what parse_chat_request does with a body.
void read_chat(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request);

}  // namespace lk::openai
