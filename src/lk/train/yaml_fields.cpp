// SPDX-License-Identifier: Apache-2.0
#include "lk/train/yaml_fields.h"

#include <algorithm>
#include <charconv>

#include "lk/base/bytes.h"
#include "lk/train/foreign_names.h"

namespace lk {
namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t k = 0; k <= b.size(); ++k) row[k] = k;
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t k = 0; k < b.size(); ++k) {
      const size_t changed = diagonal + (a[i] == b[k] ? 0 : 1);
      diagonal = row[k + 1];
      row[k + 1] = std::min({changed, row[k] + 1, row[k + 1] + 1});
    }
  }
  return row[b.size()];
}

template <class T>
bool parse_all(const std::string& text, T& out) {
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, out);
  return result.ec == std::errc() && result.ptr == end;
}

}  // namespace

std::string yaml_place(const std::string& file, const YAML::Mark& mark) {
  return mark.is_null() || file.starts_with("--") ? file : fmt::format("{}:{}", file, mark.line + 1);
}

std::string nearest_name(std::string_view name, const std::set<std::string, std::less<>>& known) {
  std::string best;
  size_t least = std::max<size_t>(2, name.size() / 3) + 1;
  for (const std::string& each : known)
    if (const size_t distance = edit_distance(name, each); distance < least) least = distance, best = each;
  return best;
}

std::string yaml_text(const YAML::Node& node) {
  if (node.IsScalar()) return fmt::format("\"{}\"", node.Scalar().substr(0, 60));
  return node.IsSequence() ? "a list" : node.IsMap() ? "a mapping" : "nothing";
}

Result<YamlFields::Layer> YamlFields::layer_of(const YAML::Node& node, const std::string& file,
                                               const std::string& what) {
  Layer layer;
  if (!node.IsDefined() || node.IsNull()) return layer;
  if (!node.IsMap())
    return invalid_argument("{}: {} must be a mapping, is {}", yaml_place(file, node.Mark()), what, yaml_text(node));
  std::set<std::string> seen;
  for (const auto& pair : node) {
    if (!pair.first.IsScalar())
      return invalid_argument("{}: a key of {} is {}, not a name", yaml_place(file, pair.first.Mark()), what,
                              yaml_text(pair.first));
    if (!seen.insert(pair.first.Scalar()).second)
      return invalid_argument("{}: {} has \"{}\" twice", yaml_place(file, pair.first.Mark()), what,
                              pair.first.Scalar());
    layer.push_back({pair.first.Scalar(), pair.second, pair.first.Mark()});
  }
  return layer;
}

void YamlFields::fail(const YAML::Mark& mark, const std::string& message) {
  if (status_.ok()) status_ = invalid_argument("{}: {}", yaml_place(file_, mark), message);
}

const YAML::Node* YamlFields::find(const char* key) {
  known_.emplace(key);
  if (hidden_.contains(key)) return nullptr;
  for (const Layer& layer : layers_)
    for (const Entry& entry : layer)
      if (entry.key == key) return entry.value.IsNull() ? nullptr : &entry.value;
  return nullptr;
}

std::optional<std::string> YamlFields::scalar(const char* key, const YAML::Node& node, const char* expected) {
  if (node.IsScalar()) return node.Scalar();
  fail(node.Mark(), fmt::format("{}{} must be {}, is {}", path_, key, expected, yaml_text(node)));
  return std::nullopt;
}

bool YamlFields::read_integer(const char* key, const YAML::Node& node, int64_t min, int64_t max, int64_t& out) {
  const std::optional<std::string> text = scalar(key, node, "an integer");
  if (!text) return false;
  if (!parse_all(*text, out)) {
    fail(node.Mark(), fmt::format("{}{} must be an integer, is {}", path_, key, yaml_text(node)));
  } else if (out < min || out > max) {
    fail(node.Mark(), fmt::format("{}{} is {}, it must be between {} and {}", path_, key, out, min, max));
  }
  return status_.ok();
}

bool YamlFields::read_number(const char* key, const YAML::Node& node, const Bounds& bounds, double& out) {
  const std::optional<std::string> text = scalar(key, node, "a number");
  if (!text) return false;
  if (!parse_all(*text, out)) {
    fail(node.Mark(), fmt::format("{}{} must be a number, is {}", path_, key, yaml_text(node)));
  } else if (!(out >= bounds.min && out <= bounds.max) || (bounds.above_min && out == bounds.min)) {  // NaN too
    fail(node.Mark(), fmt::format("{}{} is {}, it must be {} {} and at most {}", path_, key, *text,
                                  bounds.above_min ? "above" : "at least", bounds.min, bounds.max));
  }
  return status_.ok();
}

void YamlFields::integer(const char* key, int64_t& out, int64_t min, int64_t max) {
  int64_t value = 0;
  if (const YAML::Node* node = find(key); node && read_integer(key, *node, min, max, value)) out = value;
}

void YamlFields::seed(const char* key, uint64_t& out) {
  int64_t value = 0;
  if (const YAML::Node* node = find(key); node && read_integer(key, *node, 0, INT64_MAX, value))
    out = static_cast<uint64_t>(value);
}

void YamlFields::number(const char* key, double& out, const Bounds& bounds) {
  double value = 0;
  if (const YAML::Node* node = find(key); node && read_number(key, *node, bounds, value)) out = value;
}

void YamlFields::number(const char* key, std::optional<double>& out, const Bounds& bounds) {
  double value = 0;
  if (const YAML::Node* node = find(key); node && read_number(key, *node, bounds, value)) out = value;
}

void YamlFields::numbers(const char* key, std::span<double* const> out, const Bounds& bounds) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  if (!node->IsSequence() || node->size() != out.size())
    return fail(node->Mark(),
                fmt::format("{}{} must be a list of {} numbers, is {}", path_, key, out.size(), yaml_text(*node)));
  for (size_t k = 0; k < out.size(); ++k) {
    double value = 0;
    if (read_number(key, (*node)[k], bounds, value)) *out[k] = value;
  }
}

void YamlFields::flag(const char* key, bool& out) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  const std::optional<std::string> text = scalar(key, *node, "true or false");
  if (!text) return;
  const bool yes = *text == "true" || *text == "True" || *text == "TRUE";  // as YAML 1.2 has them
  if (!yes && *text != "false" && *text != "False" && *text != "FALSE")
    return fail(node->Mark(), fmt::format("{}{} must be true or false, is {}", path_, key, yaml_text(*node)));
  out = yes;
}

void YamlFields::text(const char* key, std::string& out) {
  if (const YAML::Node* node = find(key))
    if (const std::optional<std::string> value = scalar(key, *node, "a string")) out = *value;
}

void YamlFields::bytes(const char* key, int64_t& out) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  const std::optional<std::string> text = scalar(key, *node, "a size such as 8GiB");
  if (!text) return;
  const Result<int64_t> value = parse_bytes(*text);
  if (!value.ok()) return fail(node->Mark(), fmt::format("{}{}: {}", path_, key, value.status().message()));
  out = *value;
}

void YamlFields::each_item(const char* key, const char* expected, const std::function<bool(const YAML::Node&)>& read) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  if (!node->IsSequence() && !node->IsScalar())
    return fail(node->Mark(), fmt::format("{}{} must be {}, is {}", path_, key, expected, yaml_text(*node)));
  if (node->IsScalar()) {
    read(*node);
    return;
  }
  for (const auto& item : *node)
    if (!read(item)) return;
}

void YamlFields::strings(const char* key, std::vector<std::string>& out) {
  std::vector<std::string> values;
  each_item(key, "a list of strings", [&](const YAML::Node& item) {
    const std::optional<std::string> value = scalar(key, item, "a list of strings");
    if (value) values.push_back(*value);
    return value.has_value();
  });
  if (find(key) != nullptr) out = std::move(values);
}

void YamlFields::integers(const char* key, std::vector<int64_t>& out, int64_t min, int64_t max) {
  std::vector<int64_t> values;
  each_item(key, "a list of integers",
            [&](const YAML::Node& item) { return read_integer(key, item, min, max, values.emplace_back()); });
  if (find(key) != nullptr) out = std::move(values);
}

void YamlFields::each_entry(const char* key, const std::function<bool(const std::string&, const YAML::Node&)>& read) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return;
  Result<Layer> layer = layer_of(*node, file_, path_ + key);
  if (!layer.ok()) {
    if (status_.ok()) status_ = layer.status();
    return;
  }
  for (const Entry& entry : *layer)
    if (!read(entry.key, entry.value)) return;
}

void YamlFields::map(const char* key, std::vector<std::pair<std::string, int64_t>>& out, int64_t min, int64_t max) {
  if (find(key) != nullptr) out.clear();
  each_entry(key, [&](const std::string& name, const YAML::Node& value) {
    return read_integer(key, value, min, max, out.emplace_back(name, 0).second);
  });
}

void YamlFields::map(const char* key, std::vector<std::pair<std::string, double>>& out, const Bounds& bounds) {
  if (find(key) != nullptr) out.clear();
  each_entry(key, [&](const std::string& name, const YAML::Node& value) {
    return read_number(key, value, bounds, out.emplace_back(name, 0).second);
  });
}

std::optional<size_t> YamlFields::choose(const char* key, const std::vector<std::string>& names) {
  const YAML::Node* node = find(key);
  if (node == nullptr) return std::nullopt;
  const auto at = node->IsScalar() ? std::find(names.begin(), names.end(), node->Scalar()) : names.end();
  if (at != names.end()) return static_cast<size_t>(at - names.begin());
  const std::string instead = node->IsScalar() ? instead_of_value(node->Scalar()) : "";
  fail(node->Mark(), fmt::format("{}{} must be one of {}, is {}{}", path_, key, fmt::join(names, ", "),
                                 yaml_text(*node), instead.empty() ? "" : "; " + instead));
  return std::nullopt;
}

void YamlFields::exclusive(const std::vector<std::string>& keys) {
  for (const Layer& layer : layers_) {
    std::vector<const Entry*> present;
    for (const Entry& entry : layer)
      if (std::find(keys.begin(), keys.end(), entry.key) != keys.end() && !entry.value.IsNull())
        present.push_back(&entry);
    if (present.empty()) continue;
    if (present.size() > 1)
      return fail(present[1]->mark, fmt::format("{0}{1} and {0}{2} exclude each other; give one", path_,
                                                present[0]->key, present[1]->key));
    hidden_.insert(keys.begin(), keys.end());
    hidden_.erase(present[0]->key);
    return;
  }
}

std::vector<YamlFields::Layer> YamlFields::sections(const char* key) {
  known_.emplace(key);
  std::vector<Layer> found;
  for (const Layer& layer : layers_)
    for (const Entry& entry : layer) {
      if (entry.key != key) continue;
      Result<Layer> section = layer_of(entry.value, file_, path_ + key);
      if (section.ok())
        found.push_back(std::move(section).value());
      else if (status_.ok())
        status_ = section.status();
    }
  return found;
}

void YamlFields::alone(const char* key, const std::set<std::string>& beside) {
  if (find(key) == nullptr) return;
  for (const Layer& layer : layers_) {
    bool last = false;
    for (const Entry& entry : layer) {
      last = last || entry.key == key;
      if (entry.key == key || beside.contains(entry.key) || entry.value.IsNull()) continue;
      fail(entry.mark, fmt::format("{0}{1} says what {0}{2} is; leave it out", path_, key, entry.key));
    }
    if (last) return;
  }
}

void YamlFields::finish(const std::map<std::string, std::string, std::less<>>& elsewhere) {
  const auto advice = [&](const std::string& key) {
    if (std::string instead = instead_of_key(key); !instead.empty()) return instead;
    if (const auto home = elsewhere.find(key); home != elsewhere.end())
      return fmt::format("it is \"{}\"", home->second);
    const std::string near = nearest_name(key, known_);
    return near.empty() ? fmt::format("known: {}", fmt::join(known_, ", "))
                        : fmt::format("did you mean \"{}{}\"?", path_, near);
  };
  for (const Layer& layer : layers_)
    for (const Entry& entry : layer)
      if (!known_.contains(entry.key))
        fail(entry.mark, fmt::format("unknown key \"{}{}\"; {}", path_, entry.key, advice(entry.key)));
}

}  // namespace lk
