// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_model.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "lk/base/file.h"
#include "lk/base/logprobs.h"
#include "lk/infer/constraint.h"
#include "lk/infer/pooling.h"
#include "lk/infer/request_fields.h"

namespace lk {
namespace {

constexpr std::string_view kContinueTag = "<|lorikeet: the message goes on here|>";
constexpr std::string_view kSpace = " \t\r\n\v\f";

std::string_view trim_end(std::string_view text) { return text.substr(0, text.find_last_not_of(kSpace) + 1); }
std::string_view trim(std::string_view text) {
  text = trim_end(text);
  return text.substr(std::min(text.size(), text.find_first_not_of(kSpace)));
}

// The text content of the last message, or of the last text part of it; null when there is none.
boost::json::string* text_of_last(boost::json::array& messages) {
  if (messages.empty()) return nullptr;
  boost::json::object* message = messages.back().if_object();
  boost::json::value* content = message ? message->if_contains("content") : nullptr;
  if (!content) return nullptr;
  if (content->is_string()) return &content->get_string();
  if (!content->is_array()) return nullptr;
  boost::json::array& parts = content->get_array();
  for (auto part = parts.rbegin(); part != parts.rend(); ++part)
    if (boost::json::object* object = part->if_object())
      if (boost::json::value* text = object->if_contains("text"); text && text->is_string()) return &text->get_string();
  return nullptr;
}

}  // namespace

Status validate_sampling(const SamplingParams& p, int64_t vocab_size) {
  std::string problem;
  const auto number = [&](const Field& field, double value) {
    if (!problem.empty()) return;
    if (const std::string found = field.problem(value); !found.empty())
      problem = fmt::format("{} {}", field.name, found);
  };
  const auto count = [&](const Field& field, int64_t value, int64_t min) {
    if (problem.empty() && (value < min || value > field.max))
      problem = field.max == kNoMaximum
                    ? fmt::format("{} must be at least {}, is {}", field.name, min, value)
                    : fmt::format("{} must be from {} to {}, is {}", field.name, min, field.max, value);
  };
  number(sampling_field("temperature"), p.temperature);
  count(sampling_field("top_k"), p.top_k, 0);  // -1 has become 0 by now
  number(sampling_field("top_p"), p.top_p);
  number(sampling_field("min_p"), p.min_p);
  number(sampling_field("repetition_penalty"), p.repetition_penalty);
  number(sampling_field("presence_penalty"), p.presence_penalty);
  number(sampling_field("frequency_penalty"), p.frequency_penalty);
  if (p.num_logprobs != kLogprobsOfBiased) count(sampling_field("logprobs"), p.num_logprobs, -1);
  count(sampling_field("prompt_logprobs"), p.num_prompt_logprobs, -1);
  const Field& bias_field = sampling_field("logit_bias");
  if (problem.empty() && p.logit_bias.size() > static_cast<size_t>(bias_field.max_count))
    problem =
        fmt::format("logit_bias has {} entries, at most {} are allowed", p.logit_bias.size(), bias_field.max_count);
  for (const auto& [token, bias] : p.logit_bias) {
    if (problem.empty() && (token < 0 || token >= vocab_size))
      problem = fmt::format("logit_bias names token {}, the vocabulary has {}", token, vocab_size);
    if (const std::string found = bias_field.problem(bias); problem.empty() && !found.empty())
      problem = fmt::format("logit_bias of token {} {}", token, found);
  }
  return problem.empty() ? Status() : invalid_argument("{}", problem);
}

Result<std::shared_ptr<const TextModel>> TextModel::load(const std::string& directory, const ModelConfig& config,
                                                         int64_t context, std::optional<Pooling> pooling) {
  std::shared_ptr<TextModel> model(new TextModel());
  model->config_ = config;
  if (pooling) {
    model->pooling_ = *pooling;
  } else if (!directory.empty()) {
    LK_ASSIGN_OR_RETURN(model->pooling_, load_pooling(directory));
  }
  LK_ASSIGN_OR_RETURN(model->sides_, TextSides::open(directory, config));
  const int64_t longest = config.context_limit();
  model->context_ = context > 0 ? context : longest;
  if (model->context_ > longest)
    return invalid_argument("--context {} is longer than the {} positions of the model", model->context_, longest);
  return std::shared_ptr<const TextModel>(std::move(model));
}

// Where the prompt leaves a model that thinks.
ThinkingStart TextModel::thinking_start_of(const TextRequest& text, const std::vector<int32_t>& prompt,
                                           const TextSide& side) const {
  constexpr size_t kEnd = 32;  // tokens: the marks and white space behind them
  const std::span<const int32_t> end = std::span(prompt).last(std::min(prompt.size(), kEnd));
  std::string continued;
  boost::json::array last;
  if (text.continue_final_message && !text.messages.empty()) {
    last.push_back(text.messages.back());
    if (const boost::json::string* content = text_of_last(last)) continued = std::string(*content);
  }
  return thinking_start(text.reasoning, side.tokenizer->decode(end, false), continued);
}

int64_t TextModel::count_reasoning(TextRequest text, std::vector<int32_t> output, const TextSide& side) const {
  if (text.reasoning == ReasoningFormat::kNone || !side.tokenizer) return 0;
  if (!text.thinking_start) {
    const Result<std::vector<int32_t>> prompt = prompt_tokens(text, &side);
    if (!prompt.ok()) return 0;
    text.thinking_start = thinking_start_of(text, *prompt, side);
  }
  const auto is_one_of = [&](const std::vector<int32_t>& tokens) {
    return !output.empty() && std::ranges::count(tokens, output.back()) > 0;
  };
  if (is_one_of(text.stop_token_ids) || ((!text.ignore_eos || text.grammar) && is_one_of(side.end_tokens)))
    output.pop_back();  // it has no text
  TextSequence sequence;
  text.stop.clear();
  sequence.text = std::move(text);
  sequence.asked.output_so_far = std::move(output);
  (void)sequence.begin_text(side.tokenizer);
  return sequence.completion.reasoning_tokens;
}

Result<std::string> render_messages(const TextRequest& request, const TextSide& side, std::string_view* about) {
  std::string_view unwanted;
  std::string_view& field = about ? *about : unwanted;
  if (!side.templates) return failed_precondition("the model has no chat template: give a prompt instead of messages");
  const bool tools = !request.tools.empty();
  Result<const ChatTemplates::Entry*> chosen = side.templates->choose(request.template_name, tools);
  if (!chosen.ok()) {
    if (!request.template_name.empty()) field = "chat_template";
    return chosen.status();
  }
  boost::json::array messages = request.messages;
  boost::json::string* last = request.continue_final_message ? text_of_last(messages) : nullptr;
  if (request.continue_final_message && !last)
    return invalid_argument("continue_final_message needs a last message with text content");
  const std::string content = last ? std::string(*last) : "";
  if (last) last->append(kContinueTag).append(" ");
  Conversation conversation{.messages = std::move(messages),
                            .tools = request.tools,
                            .variables = request.template_variables,
                            .add_generation_prompt = request.add_generation_prompt && !request.continue_final_message};
  LK_ASSIGN_OR_RETURN(ChatTemplate::Marked rendered, (*chosen)->render(std::move(conversation)));
  std::string text = std::move(rendered.text);
  if (const Status shown = (*chosen)->check_tools(request.tools, text); !shown.ok()) {
    field = "tools";
    return shown;
  }
  if (!last) return text;
  // As transformers: the text is cut behind the content of the last message, where the mark is; what a template that
  // trims the content took from the mark, it would have taken from the content.
  const size_t at = text.rfind(kContinueTag);
  if (at == std::string::npos || text.find(trim(content)) == std::string::npos)
    return invalid_argument("continue_final_message: the template does not show the last message as it is");
  const bool trims = text.compare(at + kContinueTag.size(), 1, " ") != 0;
  text.resize(at);
  if (trims) text.resize(trim_end(text).size());
  return text;
}

// Of a long text beginnings come first, each some times as long as the one before. How a beginning is cut into tokens
// differs from how the whole is only near its end.
Result<std::vector<int32_t>> TextModel::encode(const Tokenizer& tokenizer, std::string_view text,
                                               bool add_special_tokens, int64_t enough) const {
  constexpr size_t kTokenBytes = 16, kGrowth = 8;  // the first has four times as many tokens as are enough, usually
  if (enough > 0)
    for (size_t size = static_cast<size_t>(enough) * kTokenBytes; size < text.size() / 2; size *= kGrowth) {
      size_t end = size;
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not within a character
      LK_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, tokenizer.encode(text.substr(0, end), add_special_tokens));
      if (std::ssize(tokens) > 2 * enough) return tokens;
    }
  return tokenizer.encode(text, add_special_tokens);
}

Result<std::vector<int32_t>> TextModel::prompt_tokens(const TextRequest& request, const TextSide* own,
                                                      std::string_view* field, int64_t enough) const {
  const TextSide& side = own ? *own : base();
  std::vector<int32_t> tokens;
  const int given =
      (request.token_ids.empty() ? 0 : 1) + (request.messages.empty() ? 0 : 1) + (request.prompt.empty() ? 0 : 1);
  if (given != 1) return invalid_argument("exactly one of prompt, messages and token_ids must be given and not empty");
  if (!request.token_ids.empty()) {
    tokens = request.token_ids;
  } else if (!side.tokenizer) {
    return failed_precondition("the model has no tokenizer.json: give token_ids");
  } else if (!request.messages.empty()) {
    LK_ASSIGN_OR_RETURN(const std::string text, render_messages(request, side, field));
    LK_ASSIGN_OR_RETURN(tokens, encode(*side.tokenizer, text, request.special_tokens_around_template, enough));
  } else {
    LK_ASSIGN_OR_RETURN(tokens, encode(*side.tokenizer, request.prompt, request.add_special_tokens, enough));
  }
  for (size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= side.vocab_size)
      return invalid_argument("token id {} at position {} is outside the vocabulary of {}", tokens[i], i,
                              side.vocab_size);
  int64_t most = request.truncate_prompt_tokens;
  // Room for the answer is kept as long as it leaves the prompt half of the context.
  if (most < 0) most = context_ - (request.embed ? 0 : std::min(request.max_tokens, context_ / 2));
  if (most > 0 && std::ssize(tokens) > most) {
    if (request.truncate_right)
      tokens.resize(static_cast<size_t>(most));
    else
      tokens.erase(tokens.begin(), tokens.end() - most);
  }
  return tokens;
}

Status TextModel::check(const TextRequest& request, const TextSide& side, std::string_view& field) const {
  field = "logit_bias";
  for (const auto& [token, bias] : request.sampling.logit_bias)
    if (token < 0 || token >= side.vocab_size)
      return invalid_argument("logit_bias names token {}, the vocabulary has {}", token, side.vocab_size);
  field = "";
  LK_RETURN_IF_ERROR(validate_sampling(request.sampling, side.vocab_size));
  field = "max_tokens";
  if (request.max_tokens < 0) return invalid_argument("max_tokens must be >= 0, got {}", request.max_tokens);
  field = "stop";
  const Field& stops = sampling_field("stop");
  if (request.stop.size() > static_cast<size_t>(stops.max_count))
    return invalid_argument("stop has {} strings, at most {} are allowed", request.stop.size(), stops.max_count);
  for (const std::string& stop : request.stop) {
    if (stop.empty() || stop.size() > static_cast<size_t>(stops.max))
      return invalid_argument("stop strings must have 1 to {} bytes", stops.max);
    if (!side.tokenizer) return failed_precondition("the model has no tokenizer.json: stop strings cannot be matched");
  }
  field = "stop_token_ids";
  for (int32_t token : request.stop_token_ids)
    if (token < 0 || token >= side.vocab_size)
      return invalid_argument("stop_token_ids names token {}, the vocabulary has {}", token, side.vocab_size);
  field = "allowed_token_ids";
  for (int32_t token : request.allowed_token_ids)
    if (token < 0 || token >= side.vocab_size)
      return invalid_argument("allowed_token_ids names token {}, the vocabulary has {}", token, side.vocab_size);
  return Status();
}

// Also brings the constraint to where it was.
Status TextModel::check_output_so_far(const Request& request, int64_t vocab_size) const {
  const std::vector<int32_t>& output = request.output_so_far;
  if (static_cast<int64_t>(output.size()) >= std::max<int64_t>(request.max_tokens, 1))
    return invalid_argument("output_so_far has {} tokens: it must have fewer than max_tokens ({})", output.size(),
                            request.max_tokens);
  for (size_t i = 0; i < output.size(); ++i) {
    const int32_t token = output[i];
    if (token < 0 || token >= vocab_size)
      return invalid_argument("output_so_far has token id {} at position {}, outside the vocabulary of {}", token, i,
                              vocab_size);
    const auto& stops = request.stop_token_ids;
    if (std::find(stops.begin(), stops.end(), token) != stops.end())
      return invalid_argument("output_so_far has the stop token {} at position {}: the answer is complete", token, i);
    if (request.constraint && !request.constraint->accept(token).ok())
      return invalid_argument(
          "output_so_far has token {} at position {}, where the request's grammar or allowed_token_ids forbid it",
          token, i);
  }
  return Status();
}

void part_thoughts(TextRequest& text, ReasoningFormat format, const Tokenizer* tokenizer) {
  text.reasoning = format;
  if (tokenizer == nullptr) return;
  const ReasoningMarks& marks = reasoning_marks(format);
  for (const std::vector<std::string>* list : {&marks.begins, &marks.ends})
    for (const std::string& mark : *list)
      if (const std::optional<int32_t> token = tokenizer->token_to_id(mark); token && tokenizer->is_special(*token))
        text.skip_special_tokens = false;
}

Status TextModel::prepare(TextRequest text, TextSequence& sequence, const TextSide* own,
                          std::string_view* about) const {
  const TextSide& side = own ? *own : base();
  std::string_view unwanted;
  std::string_view& field = about ? *about : unwanted;
  field = "";
  LK_RETURN_IF_ERROR(check(text, side, field));
  field = "prompt";
  Request& request = sequence.asked;
  LK_ASSIGN_OR_RETURN(request.prompt,
                      prompt_tokens(text, &side, &field, text.truncate_prompt_tokens != 0 ? 0 : context_));
  const auto prompt_length = static_cast<int64_t>(request.prompt.size());
  if (!text.embed && !config_.has_lm_head)
    return invalid_argument(
        "this model is a decoder without an lm_head: it makes embeddings (/v1/embeddings), no text");
  if (text.embed) text.max_tokens = 0;
  if (prompt_length > context_ || (prompt_length == context_ && text.max_tokens > 0))
    return invalid_argument(
        // Clients know it by these words: they shorten the conversation, or ask another model.
        "this model's maximum context length is {} tokens, and the prompt has {}: {}", context_,
        prompt_length > 2 * context_ ? fmt::format("more than {} tokens", 2 * context_) : std::to_string(prompt_length),
        text.max_tokens > 0 ? "no room for output" : "it is too long");
  // Asking for more than fits means "until the context is full".
  request.max_tokens = std::min(text.max_tokens, context_ - prompt_length);
  request.stop_token_ids = text.stop_token_ids;
  if (!text.ignore_eos || text.grammar)
    request.stop_token_ids.insert(request.stop_token_ids.end(), side.end_tokens.begin(), side.end_tokens.end());
  request.sampling = text.sampling;
  request.output_so_far = text.output_so_far;
  request.pooling = text.embed ? pooling_ : Pooling::kNone;
  if (text.reasoning != ReasoningFormat::kNone && side.tokenizer && !text.thinking_start)
    text.thinking_start = thinking_start_of(text, request.prompt, side);
  request.constraint = make_constraint(text, request.stop_token_ids, side.vocab_size, &side);
  request.cache_salt = text.cache_salt;
  request.rope_length = prompt_length + request.max_tokens;
  // Keys that are rotated otherwise are not shared.
  request.cache_salt ^= static_cast<uint64_t>(config_.rope_length(request.rope_length)) << 32;
  field = "output_so_far";
  if (request.resumed()) LK_RETURN_IF_ERROR(check_output_so_far(request, side.vocab_size));
  field = "allowed_token_ids";
  if (text.grammar && !text.allowed_token_ids.empty()) {
    std::vector<uint64_t> words(static_cast<size_t>((side.vocab_size + 63) / 64));
    LK_RETURN_IF_ERROR(request.constraint->allowed(words));
  }
  field = "output_so_far";
  // What the prompt was made of is not needed any more. It may be far larger than the prompt, of which perhaps only the
  // last tokens were wanted, and a sequence may wait for long.
  text.prompt = {};
  text.token_ids = {};
  text.messages = {};
  text.tools = {};
  text.template_variables = {};
  sequence.text = std::move(text);
  return sequence.begin_text(side.tokenizer);
}

}  // namespace lk
