// SPDX-License-Identifier: Apache-2.0
// YamlFields: typed, range-checked reading of a YAML mapping that is laid over others, the defaults. The first failure
// sticks and names file, line and key; check status() once. Values are never copied or merged, so an alias cannot grow.
#pragma once

#include <yaml-cpp/yaml.h>

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lk/base/status.h"

namespace lk {

// A value's own text for a message; long ones are cut.
std::string yaml_text(const YAML::Node& node);

class YamlFields {
 public:
  struct Entry {
    std::string key;
    YAML::Node value;
    YAML::Mark mark;  // where the key stands
  };
  using Layer = std::vector<Entry>;
  struct Bounds {
    double min = std::numeric_limits<double>::lowest(), max = std::numeric_limits<double>::max();
    bool above_min = false;  // min itself is out
  };

  // `path` ("train.") prefixes keys in messages. Layers: the first goes before the second.
  YamlFields(std::string file, std::string path, std::vector<Layer> layers)
      : file_(std::move(file)), path_(std::move(path)), layers_(std::move(layers)) {}

  // The entries of a mapping; a key that stands twice is an error.
  static Result<Layer> layer_of(const YAML::Node& node, const std::string& file, const std::string& what);

  // All leave `out` as it is when the key is absent or null.
  void integer(const char* key, int64_t& out, int64_t min, int64_t max);
  void seed(const char* key, uint64_t& out);
  void number(const char* key, double& out, const Bounds& bounds);
  void number(const char* key, std::optional<double>& out, const Bounds& bounds);
  void numbers(const char* key, std::span<double* const> out, const Bounds& bounds);  // a list of so many
  void flag(const char* key, bool& out);
  void text(const char* key, std::string& out);
  void bytes(const char* key, int64_t& out);
  void strings(const char* key, std::vector<std::string>& out);  // a list, or one
  void integers(const char* key, std::vector<int64_t>& out, int64_t min, int64_t max);
  // Mappings, in the order of the file.
  void map(const char* key, std::vector<std::pair<std::string, int64_t>>& out, int64_t min, int64_t max);
  void map(const char* key, std::vector<std::pair<std::string, double>>& out, const Bounds& bounds);
  template <class Enum, size_t n>
  void choice(const char* key, Enum& out, const std::array<std::pair<Enum, const char*>, n>& names) {
    std::vector<std::string> known;
    for (const auto& [value, name] : names) known.emplace_back(name);
    if (const std::optional<size_t> at = choose(key, known)) out = names[*at].first;
  }

  // Of these keys at most one counts: the one of the first layer that has one.
  void exclusive(const std::vector<std::string>& keys);
  // `key` decides what all others but those in `beside` say: none of them may stand in its layer or an earlier one.
  void alone(const char* key, const std::set<std::string>& beside);
  // The sections of all layers under a key, each of which must be a mapping.
  std::vector<Layer> sections(const char* key);
  // Everything must have been asked for by now: an unknown key is an error. `elsewhere` knows where keys of other
  // sections belong: "lr" -> "train.lr".
  void finish(const std::map<std::string, std::string, std::less<>>& elsewhere = {});

  const YAML::Node* find(const char* key);  // null when absent or null
  void fail(const YAML::Mark& mark, const std::string& message);
  const Status& status() const { return status_; }

 private:
  std::optional<std::string> scalar(const char* key, const YAML::Node& node, const char* expected);
  std::optional<size_t> choose(const char* key, const std::vector<std::string>& names);
  bool read_integer(const char* key, const YAML::Node& node, int64_t min, int64_t max, int64_t& out);
  bool read_number(const char* key, const YAML::Node& node, const Bounds& bounds, double& out);
  void each_item(const char* key, const char* expected, const std::function<bool(const YAML::Node&)>& read);
  void each_entry(const char* key, const std::function<bool(const std::string&, const YAML::Node&)>& read);

  std::string file_, path_;
  std::vector<Layer> layers_;
  std::set<std::string, std::less<>> known_, hidden_;
  Status status_;
};

// "JOBS.yaml:7", for messages. What came from flags ("--set") has no lines.
std::string yaml_place(const std::string& file, const YAML::Mark& mark);

// The most similar of `known`, for "did you mean"; empty if none is near.
std::string nearest_name(std::string_view name, const std::set<std::string, std::less<>>& known);

}  // namespace lk
