// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/runtime.h"

#include <algorithm>

#include "lk/text/jinja/text.h"

namespace lk::jinja {

SequencePtr Runtime::to_list(const Value& value, SequenceKind kind) {
  SequencePtr out = sequence(kind);
  if (value.is_undefined()) return out;
  if (value.is_sequence()) {
    step_items(value.items().size());
    for (const Value& item : value.items()) out->push(item);
  } else if (value.is_dict()) {
    step_items(value.dict().items().size());
    for (const auto& entry : value.dict().items()) out->push(entry.first);
  } else if (value.is_string()) {
    const std::string& text = value.text();
    for (size_t pos = 0; pos < text.size();) {
      const size_t begin = pos;
      next_code_point(text, pos);
      out->push(string(std::string_view(text).substr(begin, pos - begin)));
    }
  } else if (value.is_object(Object::Kind::kIterator)) {
    auto& it = static_cast<Iterator&>(*value.as<ObjectPtr>());
    for (; it.next < it.items().size(); ++it.next) {
      step();
      out->push(it.items()[it.next]);
    }
  } else {
    fail("{} is not iterable", type_name(value));
  }
  return out;
}

std::vector<const Value*> Arguments::bind(std::string_view function, std::initializer_list<std::string_view> names,
                                          size_t num_required) const {
  if (positional.size() > names.size()) {
    fail("{} takes at most {} arguments, got {}", function, names.size(), positional.size());
  }
  std::vector<const Value*> bound(names.size(), nullptr);
  for (size_t idx = 0; idx < positional.size(); ++idx) bound[idx] = &positional[idx];
  for (const auto& [name, value] : named) {
    const auto* it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) fail("{} has no argument named {}", function, name);
    const size_t idx = static_cast<size_t>(it - names.begin());
    if (bound[idx] != nullptr) fail("{} got two values for {}", function, name);
    bound[idx] = &value;
  }
  for (size_t idx = 0; idx < num_required; ++idx) {
    if (bound[idx] == nullptr) fail("{} needs the argument {}", function, *(names.begin() + idx));
  }
  return bound;
}

}  // namespace lk::jinja
