// SPDX-License-Identifier: Apache-2.0
// What the requests of a load say. Request i depends on the options and i only, so a run can be repeated against
// another server.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "lk/base/status.h"

namespace lk::load {

struct LengthRange {  // tokens, uniform, both ends included
  int64_t min = 0, max = 0;
  int64_t pick(uint64_t seed, uint64_t index) const;
};
Result<LengthRange> parse_length_range(const std::string& text);  // "128" or "64:256"

// One line of a prompts file: {"prompt": "text" or [ids]} or {"messages": [...]}, optionally "max_tokens" and "adapter"
// ("" = the base model).
struct PromptLine {
  boost::json::value prompt, messages;  // one is null
  int64_t max_tokens = 0;               // 0 = as --output-tokens says
  std::string adapter;
  bool has_adapter = false;
};
Result<std::vector<PromptLine>> parse_prompts(std::string_view jsonl);

struct WorkloadOptions {
  bool chat = false;
  bool stream = true;
  bool ignore_eos = true;
  LengthRange input{128, 128}, output{64, 64};
  int64_t shared_prefix = 0;  // the first tokens (chat: words) of every prompt are the same
  int64_t vocab_size = 1000;  // random token ids are below this
  double temperature = 0;
  uint64_t seed = 1;
  std::vector<PromptLine> prompts;  // used in turn instead of random ones
  boost::json::object extra;        // added to every body, and wins
};

struct GeneratedRequest {
  std::string path;  // "/v1/completions"
  std::string body;
  int64_t max_tokens = 0;
};

// Random prompts: token ids for completions; for chat, common English words, one for each token asked for (the server's
// count, which the report gives, is higher by the template and where its tokenizer splits words).
GeneratedRequest make_request(const WorkloadOptions& options, int64_t index, const std::string& model);

}  // namespace lk::load
