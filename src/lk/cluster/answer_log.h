// SPDX-License-Identifier: Apache-2.0
// AnswerLog: what a client has been given of a streamed answer, choice by choice, in tokens. It decides which groups of
// which replica are news, and says how another replica goes on. This is what makes every token arrive exactly once,
// whichever and however many replicas send it: a token is forwarded only if it is the next one (at most once), and
// another replica is asked until the answer is whole (at least once).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lk/cluster/answer_commits.h"

namespace lk {

class AnswerLog {
 public:
  enum class Verdict : uint8_t {
    kNews,     // the next tokens: show the group
    kKnown,    // delivered before, and the same: drop it
    kDiffers,  // delivered before, and others were: two replicas that should compute alike do not
    kGap,      // tokens are missing before it, or what ended goes on: its sender is broken
  };
  Verdict take(const AnswerCommit& commit);

  struct Choice {
    std::vector<int32_t> tokens;
    bool done = false;
    int64_t events = 0;  // that it was shown in, where they have numbers
    std::optional<AnswerCommit::Prompt> prompt;
    bool operator==(const Choice&) const = default;
  };
  const std::vector<Choice>& choices() const { return choices_; }
  bool whole() const { return whole_; }
  const std::string& digest() const { return digest_; }  // of the adapter that made it
  int64_t num_tokens() const { return num_tokens_; }     // of all choices
  // [{"tokens":[...],"prompt_tokens":n,"cached_tokens":m,"done":true}, ...]: choices that have nothing yet at the end
  // are left out.
  std::string choices_json() const;

 private:
  std::vector<Choice> choices_;
  std::string digest_;
  int64_t num_tokens_ = 0;
  bool whole_ = false;
};

}  // namespace lk
