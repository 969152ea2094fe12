// SPDX-License-Identifier: Apache-2.0
// How models that think first mark their thoughts: a property of the chat template that renders the prompt, as
// ToolFormat is. Sources: the templates and model cards of the families.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lk {

// docs/guide/server.md lists them. kQwen3 and kDeepSeekR1 have the same marks: a Qwen3 model says whether it thinks by
// writing the first one, a DeepSeek-R1 model thinks unless its prompt says otherwise, and may leave the first one out.
// Granite 3.3 has Qwen3's marks, and more of them around the answer.
enum class ReasoningFormat : uint8_t { kNone, kQwen3, kDeepSeekR1, kGranite, kGranite33 };

// By the name that --reasoning-parser gives it, or one that vLLM or SGLang do; "off" is kNone.
std::optional<ReasoningFormat> parse_reasoning_format(std::string_view name);

struct ReasoningMarks {
  std::vector<std::string> begins, ends;           // any one of each; the first is the one that templates write
  std::string answer_begin = {}, answer_end = {};  // around the answer; empty: none
};
const ReasoningMarks& reasoning_marks(ReasoningFormat format);

// kNone: a template without any of the marks.
ReasoningFormat detect_reasoning_format(std::string_view template_source);

// Where a prompt leaves its model.
enum class ThinkingStart : uint8_t {
  kMayThink,   // it may begin with the first mark
  kThinking,   // the prompt has begun the thoughts
  kAnswering,  // they are over, or there are none
};
// From the prompt's end. A prompt that ends within a message which is to be continued ends with that message's text:
// `continued`, else "".
ThinkingStart thinking_start(ReasoningFormat format, std::string_view prompt_end, std::string_view continued = {});

// Parts a growing text into thoughts and answer. What comes out depends on the text only, not on how it was cut into
// pieces. The marks are dropped, and white space beside them.
class ThoughtSplitter {
 public:
  enum class Phase : uint8_t { kOpening, kThinking, kAnswer };

  // `exact`: the answer is bound by a grammar, so that white space is a part of it and none comes before a mark.
  ThoughtSplitter(ReasoningFormat format, ThinkingStart start, bool exact);
  void push(std::string_view piece, std::string& thoughts, std::string& answer);
  // The end of the text: gives what was held back.
  void finish(std::string& thoughts, std::string& answer);
  // kOpening: not yet known whether it thinks.
  Phase phase() const { return phase_ == Phase::kOpening && forced_ ? Phase::kThinking : phase_; }

 private:
  enum class Wrapping : uint8_t { kNone, kBefore, kInside };
  void open(char c, std::string& thoughts, std::string& answer);
  void unwrap(std::string_view piece, std::string& answer);
  void think(char c, std::string& thoughts);
  void keep(char c, std::string& thoughts);

  const ReasoningMarks* marks_;
  Phase phase_ = Phase::kAnswer;
  bool forced_ = false;  // kOpening: what does not begin with the first mark is thought, too
  bool exact_;
  bool trims_ = false;                   // kAnswer: white space behind the mark is to come
  Wrapping wrapping_ = Wrapping::kNone;  // kAnswer: where it stands between the marks around it
  std::string held_;                     // kOpening: all so far; else what may become the next mark
  std::string gap_;                      // kThinking: white space that may stand before the last mark
  bool any_thought_ = false;
};

}  // namespace lk
