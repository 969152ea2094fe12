// SPDX-License-Identifier: Apache-2.0
// A strict reader of Prometheus' text format 0.0.4: refuses what a tolerant scraper would let pass.
#pragma once

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <regex>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

namespace lk::testing {

using LabelSet = std::map<std::string, std::string>;

struct ExpositionFamily {
  std::string help, type;
  std::map<std::string, std::map<LabelSet, double>> samples;  // by sample name (a histogram has three), then labels
};

class Exposition {
 public:
  // Throws std::runtime_error with the line that breaks a rule.
  explicit Exposition(std::string_view text) {
    if (text.empty() || text.back() != '\n') throw std::runtime_error("no line break at the end");
    while (!text.empty()) {
      const size_t end = text.find('\n');
      line(std::string(text.substr(0, end)));
      text.remove_prefix(end + 1);
    }
    for (const auto& [name, family] : families)
      if (family.type == "histogram") check_histogram(name, family);
  }

  // The value of a sample; NaN when there is none.
  double value(const std::string& sample, const LabelSet& labels) const {
    for (const auto& [name, family] : families)
      if (const auto it = family.samples.find(sample); it != family.samples.end())
        if (const auto found = it->second.find(labels); found != it->second.end()) return found->second;
    return std::nan("");
  }
  // Sum over all samples of a name.
  double total(const std::string& sample) const {
    double sum = 0;
    for (const auto& [name, family] : families)
      if (const auto it = family.samples.find(sample); it != family.samples.end())
        for (const auto& [labels, v] : it->second) sum += v;
    return sum;
  }
  std::set<std::string> sample_names() const {
    std::set<std::string> names;
    for (const auto& [name, family] : families)
      for (const auto& [sample, unused] : family.samples) names.insert(sample);
    return names;
  }

  std::map<std::string, ExpositionFamily> families;

 private:
  void line(const std::string& text) {
    static const std::regex help(R"(# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (\S.*))"),
        type(R"(# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram))");
    std::smatch m;
    if (std::regex_match(text, m, help)) {
      if (!families.try_emplace(m[1]).second) fail("a second HELP", text);
      families[m[1]].help = m[2];
      current_ = m[1];
    } else if (std::regex_match(text, m, type)) {
      if (m[1] != current_ || !families[current_].type.empty()) fail("TYPE does not follow its HELP", text);
      families[current_].type = m[2];
    } else {
      sample(text);
    }
  }

  void sample(const std::string& text) {
    static const std::regex shape(R"(([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+))");
    std::smatch m;
    if (!std::regex_match(text, m, shape)) fail("neither comment nor sample", text);
    const std::string name = m[1];
    ExpositionFamily& family = families[current_];
    if (family.type.empty()) fail("no TYPE before it", text);
    const bool histogram = family.type == "histogram";
    if (histogram ? name != current_ + "_bucket" && name != current_ + "_sum" && name != current_ + "_count"
                  : name != current_)
      fail("not of the family " + current_, text);
    char* end = nullptr;
    const std::string number = m[3];
    const double v = number == "+Inf" ? std::numeric_limits<double>::infinity() : std::strtod(number.c_str(), &end);
    if (end && *end) fail("not a number", text);
    if (family.type != "gauge" && v < 0) fail("a negative count", text);
    if (!family.samples[name].try_emplace(labels(m[2], text), v).second) fail("a second sample", text);
  }

  LabelSet labels(const std::string& text, const std::string& whole) {
    LabelSet set;
    size_t i = 1;  // after '{'
    while (i < text.size() && text[i] != '}') {
      const size_t equals = text.find('=', i);
      if (equals == std::string::npos || text[equals + 1] != '"') fail("a label without a value", whole);
      const std::string name = text.substr(i, equals - i);
      static const std::regex label_name("[a-zA-Z_][a-zA-Z0-9_]*");
      if (!std::regex_match(name, label_name)) fail("a bad label name", whole);
      std::string value;
      for (i = equals + 2; i < text.size() && text[i] != '"'; ++i) {
        if (text[i] != '\\') {
          value += text[i];
          continue;
        }
        const char escaped = text[++i];
        if (escaped != 'n' && escaped != '"' && escaped != '\\') fail("a bad escape", whole);
        value += escaped == 'n' ? '\n' : escaped;
      }
      if (!set.emplace(name, value).second) fail("a label twice", whole);
      if (++i < text.size() && text[i] == ',')
        ++i;
      else if (i >= text.size() || text[i] != '}')
        fail("labels must be separated", whole);
    }
    return set;
  }

  void check_histogram(const std::string& name, const ExpositionFamily& family) {
    if (family.samples.empty()) return;
    std::map<LabelSet, std::map<double, double>> buckets;
    for (const auto& [all_labels, v] : family.samples.at(name + "_bucket")) {
      LabelSet labels = all_labels;
      const std::string le = labels.at("le");
      labels.erase("le");
      buckets[labels][le == "+Inf" ? std::numeric_limits<double>::infinity() : std::stod(le)] = v;
    }
    for (const auto& [labels, series] : buckets) {
      double last = 0;
      for (const auto& [bound, v] : series) {
        if (v < last) fail("buckets fall", name);
        last = v;
      }
      if (!std::isinf(series.rbegin()->first)) fail("no +Inf bucket", name);
      if (family.samples.at(name + "_count").at(labels) != last) fail("count is not the last bucket", name);
      if (!family.samples.at(name + "_sum").contains(labels)) fail("no sum", name);
    }
  }

  [[noreturn]] static void fail(const std::string& what, const std::string& line) {
    throw std::runtime_error(what + ": " + line);
  }

  std::string current_;
};

}  // namespace lk::testing
