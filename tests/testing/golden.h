// SPDX-License-Identifier: Apache-2.0
// The golden fixtures of tests/golden (values from transformers and peft; tools/make_golden writes them).
#pragma once

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <map>
#include <string>
#include <vector>

#include "lk/base/file.h"
#include "lk/io/safetensors.h"

namespace lk::testing {

inline const std::string kGoldenDir = "tests/golden/fixtures/";

struct GoldenPrompt {
  std::vector<int32_t> token_ids;
  std::vector<float> logits;           // [T, vocab] or empty
  std::vector<float> last_logits;      // [vocab]
  std::vector<float> prompt_logprobs;  // [T - 1] or empty
  std::vector<int32_t> greedy;         // empty = forward pass only
  std::vector<float> greedy_logprobs;
};

struct GoldenCase {
  std::string name, model, adapter;  // directories below kGoldenDir; adapter may be empty
  std::vector<GoldenPrompt> prompts;
};

struct GoldenRow {
  std::string case_name;
  size_t prompt;
};

struct Golden {
  std::vector<GoldenCase> cases;
  std::map<std::string, std::vector<GoldenRow>> mixed_batches;
  std::map<std::string, size_t> by_name;

  const GoldenCase& find(const std::string& name) const { return cases[by_name.at(name)]; }

  static const Golden& get() {
    static const Golden golden = load();
    return golden;
  }

 private:
  static std::vector<int32_t> ints(const boost::json::value& value) {
    std::vector<int32_t> out;
    for (const auto& item : value.as_array()) out.push_back(static_cast<int32_t>(item.as_int64()));
    return out;
  }
  static Golden load() {
    Golden golden;
    const boost::json::value root = boost::json::parse(read_file(kGoldenDir + "manifest.json").value());
    const auto store = TensorStore::open_file(kGoldenDir + "expected.safetensors").value();
    const auto floats = [&](const boost::json::value& key) {
      std::vector<float> out;
      if (key.is_null()) return out;
      const TensorView* view = store->find(std::string(key.as_string()));
      out.resize(static_cast<size_t>(view->num_elements()));
      view->copy_to(out.data());
      return out;
    };
    for (const auto& item : root.at("cases").as_array()) {
      GoldenCase c{.name = std::string(item.at("name").as_string()),
                   .model = std::string(item.at("model").as_string())};
      if (!item.at("adapter").is_null()) c.adapter = std::string(item.at("adapter").as_string());
      for (const auto& p : item.at("prompts").as_array())
        c.prompts.push_back({.token_ids = ints(p.at("token_ids")),
                             .logits = floats(p.at("logits_key")),
                             .last_logits = floats(p.at("last_logits_key")),
                             .prompt_logprobs = floats(p.at("prompt_logprobs_key")),
                             .greedy = ints(p.at("greedy")),
                             .greedy_logprobs = floats(p.at("greedy_logprobs_key"))});
      golden.by_name[c.name] = golden.cases.size();
      golden.cases.push_back(std::move(c));
    }
    for (const auto& item : root.at("mixed_batches").as_array())
      for (const auto& row : item.at("rows").as_array())
        golden.mixed_batches[std::string(item.at("name").as_string())].push_back(
            {std::string(row.at("case").as_string()), static_cast<size_t>(row.at("prompt").as_int64())});
    return golden;
  }
};

}  // namespace lk::testing
