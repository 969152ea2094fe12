// SPDX-License-Identifier: Apache-2.0
#include "lk/text/json_view.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/string.hpp>

#include "lk/base/json_fields.h"
#include "lk/base/plain_text.h"

namespace lk {
namespace {

const boost::json::value* find(const boost::json::value& value, std::string_view key) {
  const boost::json::object* object = value.if_object();
  return object == nullptr ? nullptr : object->if_contains({key.data(), key.size()});
}

}  // namespace

bool JsonView::has(std::string_view key) const {
  const boost::json::value* value = find(*value_, key);
  return value != nullptr && !value->is_null();
}

Status JsonView::expect_object() const {
  if (value_->is_object()) return {};
  return error(StatusCode::kDataLoss, "must be an object, is {}", json_kind(*value_));
}

Result<JsonView> JsonView::field(std::string_view key) const {
  LK_RETURN_IF_ERROR(expect_object());
  const boost::json::value* value = find(*value_, key);
  if (value == nullptr) return error(StatusCode::kDataLoss, "field \"{}\" is missing", key);
  return JsonView(*value, file_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key));
}

Result<std::string_view> JsonView::string() const {
  const boost::json::string* text = value_->if_string();
  if (text == nullptr) return error(StatusCode::kDataLoss, "must be a string, is {}", json_kind(*value_));
  return std::string_view(text->data(), text->size());
}

Result<bool> JsonView::boolean() const {
  const bool* flag = value_->if_bool();
  if (flag == nullptr) return error(StatusCode::kDataLoss, "must be true or false, is {}", json_kind(*value_));
  return *flag;
}

Result<int64_t> JsonView::integer(int64_t min, int64_t max) const {
  // Larger uint64 values are beyond every limit used here; Boost.JSON keeps what fits an int64 as
  // int64.
  const int64_t* number = value_->if_int64();
  if (number == nullptr && !value_->is_uint64()) {
    return error(StatusCode::kDataLoss, "must be an integer, is {}", json_kind(*value_));
  }
  if (number == nullptr || *number < min || *number > max) {
    return error(StatusCode::kDataLoss, "must be an integer in [{}, {}]", min, max);
  }
  return *number;
}

// Some messages quote the file, which may hold a name of many megabytes.
Status JsonView::failed(StatusCode code, std::string_view message) const {
  constexpr size_t kMostBytes = 1000;
  return Status(code, fmt::format("{}: {}", where(), clean_text(message, kMostBytes)));
}

Result<std::vector<JsonView>> JsonView::array(size_t most) const {
  const boost::json::array* items = value_->if_array();
  if (items == nullptr) return error(StatusCode::kDataLoss, "must be a list, is {}", json_kind(*value_));
  if (items->size() > most) return error(StatusCode::kUnsupported, "has {} entries, more than {}", items->size(), most);
  std::vector<JsonView> views;
  views.reserve(items->size());
  for (size_t k = 0; k < items->size(); ++k) views.emplace_back((*items)[k], file_, fmt::format("{}[{}]", path_, k));
  return views;
}

Result<std::string_view> JsonView::string(std::string_view key) const {
  LK_ASSIGN_OR_RETURN(const JsonView value, field(key));
  return value.string();
}

Result<bool> JsonView::boolean(std::string_view key) const {
  LK_ASSIGN_OR_RETURN(const JsonView value, field(key));
  return value.boolean();
}

Result<bool> JsonView::boolean_or(std::string_view key, bool fallback) const {
  return has(key) ? boolean(key) : Result<bool>(fallback);
}

Result<std::vector<JsonView>> JsonView::array(std::string_view key, size_t most) const {
  LK_ASSIGN_OR_RETURN(const JsonView value, field(key));
  return value.array(most);
}

}  // namespace lk
