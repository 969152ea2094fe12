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
  std::vector<TextRequest> prompts;  // one for each item
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
