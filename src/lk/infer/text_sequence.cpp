// SPDX-License-Identifier: Apache-2.0
#include "lk/infer/text_sequence.h"

#include "lk/base/logprobs.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace lk {
namespace {

// Length of the longest suffix of `text` that is a proper prefix of a stop string: text that must not be shown yet.
size_t held_back(const std::string& text, const std::vector<std::string>& stops) {
  size_t held = 0;
  for (const std::string& stop : stops)
    for (size_t length = std::min(stop.size() - 1, text.size()); length > held; --length)
      if (std::string_view(text).ends_with(std::string_view(stop).substr(0, length))) {
        held = length;
        break;
      }
  return held;
}

}  // namespace

Status TextSequence::begin_text(const std::shared_ptr<const Tokenizer>& tokenizer) {
  if (tokenizer) decoder_.emplace(tokenizer, text.skip_special_tokens);
  if (tokenizer && text.reasoning != ReasoningFormat::kNone)
    thoughts_.emplace(text.reasoning, text.thinking_start.value_or(ThinkingStart::kMayThink), text.grammar != nullptr);
  completion.prompt_tokens = prompt_length();
  reserved_tokens = asked.reserved_tokens();
  for (const int32_t token : asked.output_so_far) {
    ++num_tokens_;
    if (append(text_of(token)))
      return invalid_argument(
          "output_so_far has reached the stop string \"{}\" with its token {}: the answer is complete",
          *completion.stop_string, num_tokens_ - 1);
  }
  (void)take_text();
  (void)take_reasoning();
  seam_ = shown_;
  reasoning_seam_ = reasoning_shown_;
  return Status();
}

std::string TextSequence::text_of(int32_t token) {
  return decoder_ ? decoder_->push(token) : fmt::format("{} ", token);
}

bool TextSequence::add(TokenLogprob token, bool stops) {
  const int32_t id = token.token;
  ++num_tokens_;
  completion.token_ids.push_back(id);
  if (wants_logprobs(text.sampling.num_logprobs)) completion.logprobs.push_back(std::move(token));
  if (!stops) return append(text_of(id));
  const auto& own_stops = text.stop_token_ids;
  if (std::find(own_stops.begin(), own_stops.end(), id) != own_stops.end()) completion.stop_token = id;
  return false;
}

// As ThoughtSplitter::push(), but that nothing is dropped.
void TextSequence::push_merged(std::string_view piece, std::string& answer) {
  using Phase = ThoughtSplitter::Phase;
  std::string unwanted;
  for (const char c : piece) {
    const Phase before = thoughts_->phase();
    thoughts_->push({&c, 1}, unwanted, unwanted);
    const Phase after = thoughts_->phase();
    undecided_text_ += c;
    if (after == Phase::kOpening) continue;
    const bool thought = before == Phase::kThinking || after == Phase::kThinking;
    (thought ? completion.reasoning : answer) += std::exchange(undecided_text_, {});
  }
}

// What a token adds to the answer; the thoughts are put aside.
std::string TextSequence::answer_in(const std::string& piece, bool is_last) {
  using Phase = ThoughtSplitter::Phase;
  std::string answer;
  const Phase before = thoughts_->phase();
  if (text.merge_reasoning)
    push_merged(piece, answer);
  else
    thoughts_->push(piece, completion.reasoning, answer);
  const Phase after = thoughts_->phase();
  if (is_last) {
    std::string rest, held;  // half of a mark; of one that a budget forced nothing shows
    thoughts_->finish(rest, held);
    answer += text.merge_reasoning ? std::exchange(undecided_text_, {}) : held;
    if (!text.merge_reasoning && text.thinking_budget < 0) completion.reasoning += rest;
  } else if (after == Phase::kOpening) {
    ++undecided_;
  } else if (before == Phase::kThinking || (before == Phase::kOpening && after == Phase::kThinking)) {
    completion.reasoning_tokens += 1 + std::exchange(undecided_, 0);
  }
  return answer;
}

bool TextSequence::append(const std::string& piece, bool is_last) {
  std::string& all = completion.text;
  const size_t old_size = all.size();
  all += thoughts_ ? answer_in(piece, is_last) : piece;
  size_t cut = std::string::npos;
  const bool may_stop = num_tokens_ >= text.min_tokens;
  for (const std::string& stop : text.stop) {
    const size_t found = may_stop ? all.find(stop, old_size - std::min(old_size, stop.size() - 1)) : std::string::npos;
    if (found >= cut) continue;
    cut = found;
    completion.stop_string = stop;
  }
  reached_stop_string_ = cut != std::string::npos;
  if (reached_stop_string_) all.resize(cut + (text.include_stop_string ? completion.stop_string->size() : 0));
  return reached_stop_string_;
}

std::string TextSequence::take_text() {
  const std::string& made = completion.text;
  const bool ended = completion.finish != FinishReason::kNone;
  const size_t end = ended ? made.size() : made.size() - held_back(made, text.stop);
  const size_t begin = std::min(end, std::exchange(shown_, std::max(shown_, end)));
  return made.substr(begin, end - begin);
}

std::string TextSequence::take_reasoning() {
  const size_t begin = std::exchange(reasoning_shown_, completion.reasoning.size());
  return completion.reasoning.substr(begin);
}

Completion TextSequence::prompt_facts() const {
  return {.prompt_logprobs = completion.prompt_logprobs,
          .prompt_token_ids = completion.finish == FinishReason::kNone ? asked.prompt : completion.prompt_token_ids,
          .prompt_tokens = completion.prompt_tokens,
          .cached_tokens = completion.cached_tokens};
}

void TextSequence::end(FinishReason reason, Status error) {
  completion.finish = reason;
  completion.error = std::move(error);
  completion.prompt_token_ids = std::move(asked.prompt);
  // Bytes of a character that never became whole. They may end in a stop string; a request that was ended from outside
  // stays so.
  if (decoder_ && !reached_stop_string_ && append(decoder_->flush(), true) && reason == FinishReason::kLength)
    completion.finish = FinishReason::kStop;
  completion.text.erase(0, seam_);
  shown_ -= seam_;
  completion.reasoning.erase(0, reasoning_seam_);
  reasoning_shown_ -= reasoning_seam_;
}

}  // namespace lk
