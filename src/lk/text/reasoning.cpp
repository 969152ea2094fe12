// SPDX-License-Identifier: Apache-2.0
#include "lk/text/reasoning.h"

#include <algorithm>
#include <utility>

namespace lk {
namespace {

constexpr std::string_view kSpace = " \t\r\n";
bool is_space(char c) { return kSpace.find(c) != kSpace.npos; }

std::string_view trim_end(std::string_view text) { return text.substr(0, text.find_last_not_of(kSpace) + 1); }

bool is_one_of(const std::vector<std::string>& marks, std::string_view text) {
  return std::ranges::find(marks, text) != marks.end();
}
bool begins_one_of(const std::vector<std::string>& marks, std::string_view text) {
  return std::ranges::any_of(marks, [&](const std::string& mark) { return mark.starts_with(text); });
}
bool ends_with_one_of(const std::vector<std::string>& marks, std::string_view text) {
  return std::ranges::any_of(marks, [&](const std::string& mark) { return text.ends_with(mark); });
}
// Behind the last of the marks in the text; 0 = there is none.
size_t behind_last(const std::vector<std::string>& marks, std::string_view text) {
  size_t last = 0;
  for (const std::string& mark : marks)
    if (const size_t at = text.rfind(mark); at != text.npos) last = std::max(last, at + mark.size());
  return last;
}

}  // namespace

std::optional<ReasoningFormat> parse_reasoning_format(std::string_view name) {
  if (name == "off" || name == "none") return ReasoningFormat::kNone;
  if (name == "qwen3") return ReasoningFormat::kQwen3;
  if (name == "deepseek-r1" || name == "deepseek_r1") return ReasoningFormat::kDeepSeekR1;
  if (name == "granite") return ReasoningFormat::kGranite;
  if (name == "granite-3.3") return ReasoningFormat::kGranite33;
  return std::nullopt;
}

const ReasoningMarks& reasoning_marks(ReasoningFormat format) {
  static const ReasoningMarks kNone;
  static const ReasoningMarks kThink{{"<think>"}, {"</think>"}};
  static const ReasoningMarks kGranite{{"Here is my thought process:", "Here's my thought process:"},
                                       {"Here is my response:", "Here's my response:"}};
  static const ReasoningMarks kGranite33{{"<think>"}, {"</think>"}, "<response>", "</response>"};
  if (format == ReasoningFormat::kGranite) return kGranite;
  if (format == ReasoningFormat::kGranite33) return kGranite33;
  return format == ReasoningFormat::kNone ? kNone : kThink;
}

ReasoningFormat detect_reasoning_format(std::string_view source) {
  const auto has = [&](std::string_view mark) { return source.find(mark) != source.npos; };
  if (has("my thought process:") || has("my response:")) return ReasoningFormat::kGranite;
  if (has("<think>") && has("<response>")) return ReasoningFormat::kGranite33;
  if (!has("<think>") && !has("</think>")) return ReasoningFormat::kNone;
  return has("<｜Assistant｜>") ? ReasoningFormat::kDeepSeekR1 : ReasoningFormat::kQwen3;
}

ThinkingStart thinking_start(ReasoningFormat format, std::string_view prompt_end, std::string_view continued) {
  const ReasoningMarks& marks = reasoning_marks(format);
  const size_t begun = behind_last(marks.begins, continued), ended = behind_last(marks.ends, continued);
  if (begun > ended) return ThinkingStart::kThinking;
  if (ended > 0) return ThinkingStart::kAnswering;
  const std::string_view end = trim_end(prompt_end);
  if (ends_with_one_of(marks.begins, end)) return ThinkingStart::kThinking;
  if (ends_with_one_of(marks.ends, end) || !trim_end(continued).empty()) return ThinkingStart::kAnswering;
  return format == ReasoningFormat::kDeepSeekR1 ? ThinkingStart::kThinking : ThinkingStart::kMayThink;
}

ThoughtSplitter::ThoughtSplitter(ReasoningFormat format, ThinkingStart start, bool exact)
    : marks_(&reasoning_marks(format)), forced_(start == ThinkingStart::kThinking), exact_(exact) {
  if (format != ReasoningFormat::kNone && start != ThinkingStart::kAnswering) phase_ = Phase::kOpening;
  if (!exact_ && !marks_->answer_begin.empty()) wrapping_ = Wrapping::kBefore;
  // An answer that is bound begins where the gate of its grammar says, and that has thoughts open from the start.
  if (phase_ == Phase::kOpening && forced_ && exact_) phase_ = Phase::kThinking;
}

void ThoughtSplitter::push(std::string_view piece, std::string& thoughts, std::string& answer) {
  size_t at = 0;
  for (; at < piece.size() && phase_ != Phase::kAnswer; ++at) {
    if (phase_ == Phase::kOpening)
      open(piece[at], thoughts, answer);
    else
      think(piece[at], thoughts);
  }
  piece.remove_prefix(at);
  if (trims_) {
    piece.remove_prefix(std::min(piece.size(), piece.find_first_not_of(kSpace)));
    trims_ = piece.empty();
  }
  unwrap(piece, answer);
}

// Without the marks around it.
void ThoughtSplitter::unwrap(std::string_view piece, std::string& answer) {
  for (size_t at = 0; at < piece.size(); ++at) {
    if (wrapping_ == Wrapping::kNone) return void(answer += piece.substr(at));
    if (trims_ && is_space(piece[at])) continue;
    trims_ = false;
    held_ += piece[at];
    if (wrapping_ == Wrapping::kBefore) {
      std::string_view begun = held_;
      begun.remove_prefix(std::min(begun.size(), begun.find_first_not_of(kSpace)));
      if (begun == marks_->answer_begin) {
        held_.clear();
        wrapping_ = Wrapping::kInside;
        trims_ = true;
      } else if (!marks_->answer_begin.starts_with(begun)) {
        answer += std::exchange(held_, {});
        wrapping_ = Wrapping::kNone;
      }
      continue;
    }
    size_t passed = 0;
    while (!marks_->answer_end.starts_with(std::string_view(held_).substr(passed))) answer += held_[passed++];
    held_.erase(0, passed);
    if (held_ != marks_->answer_end) continue;
    held_.clear();
    wrapping_ = Wrapping::kNone;
  }
}

void ThoughtSplitter::open(char c, std::string& thoughts, std::string& answer) {
  held_ += c;
  std::string_view rest = held_;
  if (!exact_) rest.remove_prefix(std::min(rest.size(), rest.find_first_not_of(kSpace)));
  if (is_one_of(marks_->begins, rest)) {
    phase_ = Phase::kThinking;
    held_.clear();
  } else if (!begins_one_of(marks_->begins, rest)) {
    const std::string seen = std::exchange(held_, {});
    phase_ = forced_ ? Phase::kThinking : Phase::kAnswer;
    if (forced_)
      for (const char byte : seen) think(byte, thoughts);
    else
      unwrap(seen, answer);
  }
}

void ThoughtSplitter::think(char c, std::string& thoughts) {
  held_ += c;
  size_t passed = 0;
  while (!begins_one_of(marks_->ends, std::string_view(held_).substr(passed))) keep(held_[passed++], thoughts);
  held_.erase(0, passed);
  if (!is_one_of(marks_->ends, held_)) return;
  phase_ = Phase::kAnswer;
  trims_ = !exact_;
  held_.clear();
  gap_.clear();
}

void ThoughtSplitter::keep(char c, std::string& thoughts) {
  if (is_space(c)) {
    if (any_thought_) gap_ += c;
    return;
  }
  any_thought_ = true;
  thoughts += gap_;
  thoughts += c;
  gap_.clear();
}

void ThoughtSplitter::finish(std::string& thoughts, std::string& answer) {
  const std::string held = std::exchange(held_, {});
  if (phase_ == Phase::kAnswer || !(phase_ == Phase::kThinking || forced_))
    answer += held;
  else
    for (const char c : held) keep(c, thoughts);
  phase_ = Phase::kAnswer;
  trims_ = false;
}

}  // namespace lk
