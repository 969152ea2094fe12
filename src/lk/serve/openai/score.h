// SPDX-License-Identifier: Apache-2.0
// Scores by label tokens: how likely each of them is to come next behind each prompt. SGLang's /v1/score for models
// that generate.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lk/serve/openai/openai.h"

namespace lk {

struct ScoreRequest {
  std::string model;
  // Texts or token ids, all alike.
  struct Half {
    std::string text;
    std::vector<int32_t> token_ids;
    size_t bytes() const { return text.size() + sizeof(int32_t) * token_ids.size(); }
  };
  Half query;  // of all prompts: held once
  std::vector<Half> items;
  bool item_first = false;
  TextRequest common;  // what the prompts share beside it
  // Made when it is needed: together the prompts may be far larger than the body.
  TextRequest prompt(size_t item) const;
  std::vector<int32_t> labels;
  bool apply_softmax = false;  // among the labels; else among all tokens
  std::string user;
  int64_t priority = 0;
  std::string cache_salt;
  std::vector<std::string> ignored_fields;
};
ApiResult<ScoreRequest> parse_score_request(std::string_view body, const ApiDefaults& defaults);
// {"object": "scoring", "model", "scores": [[...], ...], "usage"}: probabilities by prompt, in the order of the labels.
std::string format_scores(const ScoreRequest& request, const std::string& model,
                          const std::vector<Completion>& results);
// Bytes of such an answer, and of what it is made of.
int64_t scores_size(const ScoreRequest& request);

}  // namespace lk
