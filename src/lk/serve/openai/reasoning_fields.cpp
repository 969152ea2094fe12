// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/parse.h"

namespace lk::openai {

void read_reasoning(RequestFields& fields, const ApiDefaults& defaults, GenerateRequest& request, TextRequest& text) {
  bool separate = true;
  fields.read("separate_reasoning", separate);
  fields.read("include_reasoning", request.include_reasoning);
  fields.read("thinking_token_budget", text.thinking_budget);
  ReasoningFormat format = defaults.reasoning;
  if (defaults.reasoning_templates) {
    const ChatTemplates::Entry* entry = template_of(defaults.reasoning_templates.get(), text);
    format = entry != nullptr ? entry->reasoning : ReasoningFormat::kNone;
  }
  request.merge_reasoning = text.merge_reasoning = !separate;
  request.reasoning = format;
  part_thoughts(text, format, defaults.tokenizer);
}

}  // namespace lk::openai
