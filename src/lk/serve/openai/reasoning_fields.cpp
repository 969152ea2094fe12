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
  request.reasoning = text.reasoning = format;
  if (defaults.tokenizer == nullptr) return;
  // Marks that are special tokens must show in the text for it to be parted.
  const ReasoningMarks& marks = reasoning_marks(format);
  for (const std::vector<std::string>* list : {&marks.begins, &marks.ends})
    for (const std::string& mark : *list)
      if (const std::optional<int32_t> token = defaults.tokenizer->token_to_id(mark);
          token && defaults.tokenizer->is_special(*token))
        text.skip_special_tokens = false;
}

}  // namespace lk::openai
