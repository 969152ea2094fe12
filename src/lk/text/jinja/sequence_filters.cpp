// SPDX-License-Identifier: Apache-2.0
// Filters over sequences and dicts. Those that are generators in jinja2 give one-shot iterators
// here too (always true, no length), but are computed at once.
#include <algorithm>
#include <optional>

#include "lk/text/jinja/filters.h"
#include "lk/text/jinja/ops.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

// "a.b.0" or an index: the path that map(attribute=), sort, groupby... follow into each item.
class AttributePath {
 public:
  AttributePath(Runtime& runtime, const Value* attribute, bool lower_case = false, const Value* fallback = nullptr)
      : runtime_(runtime), lower_case_(lower_case), fallback_(fallback) {
    if (attribute == nullptr || attribute->is_none()) return;
    if (!attribute->is_string()) {
      parts_.push_back(*attribute);
      return;
    }
    const std::string& path = attribute->text();
    for (size_t begin = 0; begin <= path.size();) {
      const size_t end = std::min(path.find('.', begin), path.size());
      const std::string part = path.substr(begin, end - begin);
      const bool digits =
          !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string::npos;
      parts_.push_back(digits ? integer(std::stoll(part)) : runtime.string(part));
      begin = end + 1;
    }
  }

  Value get(Value item) const {
    for (const Value& part : parts_) {
      item = get_item(runtime_, item, part);
      if (fallback_ != nullptr && !fallback_->is_none() && item.is_undefined()) item = *fallback_;
    }
    return lower_case_ && item.is_string() ? runtime_.string(lower(item.text())) : item;
  }

 private:
  Runtime& runtime_;
  std::vector<Value> parts_;
  bool lower_case_;
  const Value* fallback_;
};

struct Keyed {
  Value key;
  Value item;
};

// Stable merge sort. Not std::stable_sort: the order may be inconsistent (NaN) or throw half-way.
void sort_keyed(Runtime& runtime, std::vector<Keyed>& items) {
  std::vector<Keyed> merged(items.size());
  for (size_t width = 1; width < items.size(); width *= 2) {
    for (size_t begin = 0; begin < items.size(); begin += 2 * width) {
      const size_t middle = std::min(begin + width, items.size());
      const size_t end = std::min(begin + 2 * width, items.size());
      size_t left = begin;
      size_t right = middle;
      for (size_t out = begin; out < end; ++out) {
        const bool take_right = left == middle || (right < end && runtime.less_than(items[right].key, items[left].key));
        merged[out] = items[take_right ? right++ : left++];
      }
    }
    items.swap(merged);
  }
}

Value sorted_list(Runtime& runtime, std::vector<Keyed> items, bool reverse) {
  if (reverse) std::reverse(items.begin(), items.end());  // twice around: ties keep their order
  sort_keyed(runtime, items);
  if (reverse) std::reverse(items.begin(), items.end());
  SequencePtr out = runtime.sequence();
  for (const Keyed& keyed : items) out->push(keyed.item);
  return Value::Data(std::move(out));
}

Value list_of(SequencePtr items) { return Value::Data(std::move(items)); }

Value filter_length(const FilterCall& call) {
  call.bind({});
  call.runtime.step(call.value.is_string() ? static_cast<int64_t>(call.value.text().size()) : 0);
  return integer(length(call.value));
}

Value filter_list(const FilterCall& call) {
  call.bind({});
  return list_of(call.runtime.to_list(call.value));
}

Value filter_join(const FilterCall& call) {
  const auto bound = call.bind({"d", "attribute"});
  const AttributePath path(call.runtime, bound[1]);
  const std::string separator = bound[0] != nullptr ? call.runtime.str(*bound[0]) : "";
  const SequencePtr items = call.runtime.to_list(call.value);
  StringBuilder out(call.runtime);
  for (size_t idx = 0; idx < items->items().size(); ++idx) {
    if (idx > 0) out.append(separator);
    out.append_value(path.get(items->items()[idx]));
  }
  return out.take();
}

Value filter_first(const FilterCall& call) {
  call.bind({});
  if (call.value.is_object(Object::Kind::kIterator)) {
    auto& it = static_cast<Iterator&>(*call.value.as<ObjectPtr>());
    return it.next < it.items().size() ? it.items()[it.next++] : undefined("first: the sequence is empty");
  }
  if (call.value.is_sequence() && !call.value.items().empty()) return call.value.items()[0];
  if (call.value.is_string() && !call.value.is_markup() && !call.value.text().empty())
    return get_item(call.runtime, call.value, integer(0));
  const SequencePtr items = call.runtime.to_list(call.value);
  return items->items().empty() ? undefined("first: the sequence is empty") : items->items()[0];
}

Value filter_last(const FilterCall& call) {
  call.bind({});
  if (call.value.is_object(Object::Kind::kIterator)) fail("last needs a list; turn the generator into one with | list");
  if (call.value.is_string() && !call.value.text().empty()) return get_item(call.runtime, call.value, integer(-1));
  if (call.value.is_sequence() && !call.value.items().empty()) return call.value.items().back();
  const SequencePtr items = call.runtime.to_list(call.value);
  return items->items().empty() ? undefined("last: the sequence is empty") : items->items().back();
}

Value filter_reverse(const FilterCall& call) {
  call.bind({});
  if (call.value.is_string()) return slice(call.runtime, call.value, none(), none(), integer(-1));
  const bool was_iterator = call.value.is_object(Object::Kind::kIterator);
  const SequencePtr items = call.runtime.to_list(call.value);
  SequencePtr out = call.runtime.sequence();
  for (auto it = items->items().rbegin(); it != items->items().rend(); ++it) out->push(*it);
  return was_iterator ? list_of(std::move(out)) : call.runtime.iterator(std::move(out));
}

Value filter_items(const FilterCall& call) {
  call.bind({});
  if (!call.value.is_undefined() && !call.value.is_dict()) fail("items needs a mapping, got {}", type_name(call.value));
  SequencePtr out = call.runtime.sequence();
  if (call.value.is_dict()) {
    for (const auto& [key, value] : call.value.dict().items()) {
      SequencePtr entry = call.runtime.sequence(SequenceKind::kTuple);
      entry->push(key);
      entry->push(value);
      out->push(list_of(std::move(entry)));
    }
  }
  return call.runtime.iterator(std::move(out));
}

Value filter_dictsort(const FilterCall& call) {
  const auto bound = call.bind({"case_sensitive", "by", "reverse"});
  const std::string by = bound[1] != nullptr ? call.runtime.str(*bound[1]) : "key";
  if (by != "key" && by != "value") fail("dictsort: by is 'key' or 'value'");
  require_defined(call.value);
  if (!call.value.is_dict()) fail("dictsort needs a mapping, got {}", type_name(call.value));
  const AttributePath path(call.runtime, nullptr, !call.flag(bound[0]));
  std::vector<Keyed> items;
  for (const auto& [key, value] : call.value.dict().items()) {
    SequencePtr entry = call.runtime.sequence(SequenceKind::kTuple);
    entry->push(key);
    entry->push(value);
    items.push_back({path.get(by == "key" ? key : value), list_of(std::move(entry))});
  }
  return sorted_list(call.runtime, std::move(items), call.flag(bound[2]));
}

Value filter_sort(const FilterCall& call) {
  const auto bound = call.bind({"reverse", "case_sensitive", "attribute"});
  std::vector<AttributePath> paths;  // "age,name" sorts by both
  if (bound[2] != nullptr && bound[2]->is_string()) {
    const std::string& text = bound[2]->text();
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      const Value part = call.runtime.string(text.substr(begin, end - begin));
      paths.emplace_back(call.runtime, &part, !call.flag(bound[1]));
      begin = end + 1;
    }
  } else {
    paths.emplace_back(call.runtime, bound[2], !call.flag(bound[1]));
  }
  std::vector<Keyed> items;
  const SequencePtr source = call.runtime.to_list(call.value);
  for (const Value& item : source->items()) {
    SequencePtr key = call.runtime.sequence();
    for (const AttributePath& path : paths) key->push(path.get(item));
    items.push_back({list_of(std::move(key)), item});
  }
  return sorted_list(call.runtime, std::move(items), call.flag(bound[0]));
}

Value filter_unique(const FilterCall& call) {
  const auto bound = call.bind({"case_sensitive", "attribute"});
  const AttributePath path(call.runtime, bound[1], !call.flag(bound[0]));
  const DictPtr seen = call.runtime.dict();
  SequencePtr out = call.runtime.sequence();
  const SequencePtr source = call.runtime.to_list(call.value);
  for (const Value& item : source->items()) {
    const Value key = path.get(item);
    call.runtime.step(key.weight() * 16);
    if (seen->find(key) != nullptr) continue;
    seen->set(key, none());
    out->push(item);
  }
  return call.runtime.iterator(std::move(out));
}

Value filter_min_max(const FilterCall& call) {
  const auto bound = call.bind({"case_sensitive", "attribute"});
  const AttributePath path(call.runtime, bound[1], !call.flag(bound[0]));
  const SequencePtr source = call.runtime.to_list(call.value);
  if (source->items().empty()) return undefined("min or max of an empty sequence");
  Keyed best{path.get(source->items()[0]), source->items()[0]};
  for (size_t idx = 1; idx < source->items().size(); ++idx) {
    Keyed next{path.get(source->items()[idx]), source->items()[idx]};
    const bool better =
        call.name == "min" ? call.runtime.less_than(next.key, best.key) : call.runtime.less_than(best.key, next.key);
    if (better) best = std::move(next);
  }
  return best.item;
}

Value filter_sum(const FilterCall& call) {
  const auto bound = call.bind({"attribute", "start"});
  const AttributePath path(call.runtime, bound[0]);
  Value total = bound[1] != nullptr ? *bound[1] : integer(0);
  if (total.is_string()) fail("sum cannot add strings; use join");
  const SequencePtr source = call.runtime.to_list(call.value);
  for (const Value& item : source->items()) total = binary(call.runtime, "+", total, path.get(item));
  return total;
}

Value filter_map(const FilterCall& call) {
  SequencePtr out = call.runtime.sequence();
  Arguments arguments = call.arguments;
  const bool by_attribute = arguments.positional.empty();
  if (!truthy(call.value)) return call.runtime.iterator(std::move(out));
  const SequencePtr source = call.runtime.to_list(call.value);
  if (by_attribute) {
    const auto bound = call.bind({"attribute", "default"});
    if (bound[0] == nullptr) fail("map needs a filter name or attribute=");
    const AttributePath path(call.runtime, bound[0], false, bound[1]);
    for (const Value& item : source->items()) out->push(path.get(item));
    return call.runtime.iterator(std::move(out));
  }
  const Value name = arguments.positional[0];
  if (!name.is_string()) fail("map needs the name of a filter");
  arguments.positional.erase(arguments.positional.begin());
  for (const Value& item : source->items()) {
    out->push(apply_filter(call.runtime, name.text(), item, arguments));
  }
  return call.runtime.iterator(std::move(out));
}

// select, reject, selectattr, rejectattr.
Value filter_select(const FilterCall& call) {
  SequencePtr out = call.runtime.sequence();
  if (!truthy(call.value)) return call.runtime.iterator(std::move(out));
  const bool wanted = call.name.starts_with("select");
  Arguments arguments = call.arguments;
  const auto pop = [&]() -> std::optional<Value> {
    if (arguments.positional.empty()) return std::nullopt;
    Value first = arguments.positional[0];
    arguments.positional.erase(arguments.positional.begin());
    return first;
  };
  std::optional<Value> attribute;
  if (call.name.ends_with("attr")) {
    attribute = pop();
    if (!attribute.has_value()) fail("{} needs the name of an attribute", call.name);
  }
  const std::optional<Value> test = pop();
  if (test.has_value() && !test->is_string()) fail("{} needs the name of a test", call.name);
  const AttributePath path(call.runtime, attribute.has_value() ? &*attribute : nullptr);
  const SequencePtr source = call.runtime.to_list(call.value);
  for (const Value& item : source->items()) {
    const Value subject = path.get(item);
    const bool holds = test.has_value() ? apply_test(call.runtime, test->text(), subject, arguments) : truthy(subject);
    if (holds == wanted) out->push(item);
  }
  return call.runtime.iterator(std::move(out));
}

Value filter_batch(const FilterCall& call) {
  const auto bound = call.bind({"linecount", "fill_with"}, 1);
  const int64_t count = call.integer_or(bound[0], 1);
  const SequencePtr source = call.runtime.to_list(call.value);
  SequencePtr out = call.runtime.sequence();
  SequencePtr line = call.runtime.sequence();
  for (const Value& item : source->items()) {
    if (static_cast<int64_t>(line->items().size()) == count) {
      out->push(list_of(std::move(line)));
      line = call.runtime.sequence();
    }
    line->push(item);
  }
  if (!line->items().empty()) {
    const bool fills = bound[1] != nullptr && !bound[1]->is_none();
    while (fills && static_cast<int64_t>(line->items().size()) < count) {
      call.runtime.step();
      line->push(*bound[1]);
    }
    out->push(list_of(std::move(line)));
  }
  return call.runtime.iterator(std::move(out));
}

Value filter_slice(const FilterCall& call) {
  const auto bound = call.bind({"slices", "fill_with"}, 1);
  const int64_t num_slices = call.integer_or(bound[0], 1);
  const SequencePtr source = call.runtime.to_list(call.value);
  if (num_slices == 0) fail("slice: the number of slices cannot be zero");
  SequencePtr out = call.runtime.sequence();
  const auto count = static_cast<int64_t>(source->items().size());
  size_t at = 0;
  for (int64_t idx = 0; idx < num_slices; ++idx) {
    SequencePtr part = call.runtime.sequence();
    const int64_t size = count / num_slices + (idx < count % num_slices ? 1 : 0);
    for (int64_t k = 0; k < size; ++k) part->push(source->items()[at++]);
    if (bound[1] != nullptr && !bound[1]->is_none() && idx >= count % num_slices) part->push(*bound[1]);
    out->push(list_of(std::move(part)));
  }
  return call.runtime.iterator(std::move(out));
}

Value filter_groupby(const FilterCall& call) {
  const auto bound = call.bind({"attribute", "default", "case_sensitive"}, 1);
  const AttributePath key_path(call.runtime, bound[0], !call.flag(bound[2]), bound[1]);
  const AttributePath shown_path(call.runtime, bound[0], false, bound[1]);
  std::vector<Keyed> items;
  const SequencePtr source = call.runtime.to_list(call.value);
  for (const Value& item : source->items()) items.push_back({key_path.get(item), item});
  sort_keyed(call.runtime, items);
  SequencePtr out = call.runtime.sequence();
  for (size_t begin = 0; begin < items.size();) {
    SequencePtr members = call.runtime.sequence();
    size_t end = begin;
    for (; end < items.size() && call.runtime.equals(items[begin].key, items[end].key); ++end) {
      members->push(items[end].item);
    }
    if (end == begin) members->push(items[end++].item);  // NaN: a group of its own
    SequencePtr group = call.runtime.sequence(SequenceKind::kTuple);
    group->is_group = true;
    group->push(shown_path.get(items[begin].item));
    group->push(list_of(std::move(members)));
    out->push(list_of(std::move(group)));
    begin = end;
  }
  return list_of(std::move(out));
}

constexpr FilterEntry kFilters[] = {
    {"batch", filter_batch},     {"count", filter_length},    {"dictsort", filter_dictsort},
    {"first", filter_first},     {"groupby", filter_groupby}, {"items", filter_items},
    {"join", filter_join},       {"last", filter_last},       {"length", filter_length},
    {"list", filter_list},       {"map", filter_map},         {"max", filter_min_max},
    {"min", filter_min_max},     {"reject", filter_select},   {"rejectattr", filter_select},
    {"reverse", filter_reverse}, {"select", filter_select},   {"selectattr", filter_select},
    {"slice", filter_slice},     {"sort", filter_sort},       {"sum", filter_sum},
    {"unique", filter_unique}};

}  // namespace

const FilterEntry* find_sequence_filter(std::string_view name) {
  const auto* it =
      std::find_if(std::begin(kFilters), std::end(kFilters), [&](const auto& e) { return e.name == name; });
  return it == std::end(kFilters) ? nullptr : it;
}

}  // namespace lk::jinja
