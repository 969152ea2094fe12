// SPDX-License-Identifier: Apache-2.0
#include "lk/cluster/answer_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace lk {

AnswerLog::Verdict AnswerLog::take(const AnswerCommit& commit) {
  if (commit.end) {
    const bool all_done = std::ranges::all_of(choices_, [](const Choice& choice) { return choice.done; });
    if (!all_done || choices_.empty()) return Verdict::kGap;
    return std::exchange(whole_, true) ? Verdict::kKnown : Verdict::kNews;
  }
  if (commit.tokens.empty() && !commit.done) return Verdict::kKnown;  // nothing
  const auto index = static_cast<size_t>(commit.choice);
  if (index >= choices_.size() && commit.first > 0) return Verdict::kGap;
  if (index >= choices_.size()) choices_.resize(index + 1);
  Choice& choice = choices_[index];
  const auto known = static_cast<int64_t>(choice.tokens.size());
  const auto count = static_cast<int64_t>(commit.tokens.size());
  if (commit.first > known) return Verdict::kGap;
  const bool is_news = commit.first == known && !choice.done;
  if (!is_news) {
    const int64_t overlap = std::min(count, known - commit.first);
    if (!std::equal(commit.tokens.begin(), commit.tokens.begin() + overlap, choice.tokens.begin() + commit.first))
      return Verdict::kDiffers;
    // Groups begin and end where they did before, or somebody decided otherwise.
    const bool same_end = commit.done == (choice.done && commit.first + count == known);
    return overlap == count && same_end ? Verdict::kKnown : Verdict::kDiffers;
  }
  choice.tokens.insert(choice.tokens.end(), commit.tokens.begin(), commit.tokens.end());
  if (!choice.prompt) choice.prompt = commit.prompt;
  if (digest_.empty()) digest_ = commit.digest;
  choice.done = commit.done;
  choice.events = commit.events;
  num_tokens_ += count;
  return Verdict::kNews;
}

std::string AnswerLog::choices_json() const {
  std::string out = "[";
  for (const Choice& choice : choices_) {
    fmt::format_to(std::back_inserter(out), "{}{{\"tokens\":[{}]", out.size() > 1 ? "," : "",
                   fmt::join(choice.tokens, ","));
    if (choice.prompt)
      fmt::format_to(std::back_inserter(out), ",\"prompt_tokens\":{},\"cached_tokens\":{}", choice.prompt->tokens,
                     choice.prompt->cached);
    if (choice.events > 0) fmt::format_to(std::back_inserter(out), ",\"events\":{}", choice.events);
    out += choice.done ? ",\"done\":true}" : "}";
  }
  return out + "]";
}

}  // namespace lk
