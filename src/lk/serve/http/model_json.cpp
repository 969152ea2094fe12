// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/http/model_json.h"

#include <fmt/format.h>

#include <iterator>

#include "lk/serve/openai/json_writer.h"

namespace lk {

using openai::append_string;

void ModelList::add_base(std::string_view id, std::string_view root, int64_t context) {
  append(id, root, true, context, started_);
}

void ModelList::add(std::string_view id, std::string_view root, int64_t created) {
  append(id, root, false, 0, created > 0 ? created : started_);
}

void ModelList::append(std::string_view id, std::string_view root, bool is_base, int64_t context, int64_t created) {
  if (!data_.empty()) data_ += ',';
  if (first_.empty()) first_ = id;
  last_ = id;
  std::string quoted;
  append_string(quoted, id);
  data_ += "{\"id\":" + quoted;
  fmt::format_to(std::back_inserter(data_),
                 ",\"object\":\"model\",\"created\":{},\"owned_by\":\"lorikeet\",\"root\":", created);
  append_string(data_, root);
  data_ += ",\"parent\":";
  if (is_base)
    data_ += "null";
  else
    append_string(data_, base_);
  data_ += ",\"max_model_len\":" + (is_base ? std::to_string(context) : "null");
  fmt::format_to(
      std::back_inserter(data_),
      ",\"permission\":[{{\"id\":\"modelperm-{}\",\"object\":\"model_permission\",\"created\":{},"
      "\"allow_create_engine\":false,\"allow_sampling\":true,\"allow_logprobs\":true,"
      "\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":false,\"organization\":\"*\","
      "\"group\":null,\"is_blocking\":false}}]}}",
      std::string_view(quoted).substr(1, quoted.size() - 2), created);
}

std::string ModelList::text(bool has_more) const {
  std::string out;
  out.reserve(data_.size() + 256);
  out += "{\"object\":\"list\",\"data\":[" + data_ + "],\"first_id\":";
  const auto id = [&](const std::string& name) {
    if (name.empty())
      out += "null";
    else
      append_string(out, name);
  };
  id(first_);
  out += ",\"last_id\":";
  id(last_);
  out += has_more ? ",\"has_more\":true}" : ",\"has_more\":false}";
  return out;
}

}  // namespace lk
