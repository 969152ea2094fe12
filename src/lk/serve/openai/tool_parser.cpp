// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/tool_parser.h"

#include <cctype>

namespace lk::openai {
namespace {

// Looking again at text that was no call takes time; an answer full of beginnings is just text after so many.
constexpr int kMaxGivenBack = 64;
constexpr std::string_view kCloseTag = "</tool_call>";
constexpr std::string_view kArgsTag = "[ARGS]";
constexpr size_t kMaxHeader = 64;  // [CALL_ID]...[ARGS]

std::string_view tag_of(ToolFormat format) {
  switch (format) {
    case ToolFormat::kHermes:
      return "<tool_call>";
    case ToolFormat::kLlama3:
      return "<|python_tag|>";
    case ToolFormat::kMistral:
      return "[TOOL_CALLS]";
    case ToolFormat::kNone:
      break;
  }
  return "";
}

void append(ToolDeltas& out, ToolDelta::Kind kind, int call, std::string_view text) {
  if (text.empty()) return;
  if (out.empty() || out.back().kind != kind || out.back().call != call) out.push_back({kind, call, {}});
  out.back().text += text;
}

}  // namespace

ToolCallParser::ToolCallParser(ToolSyntax syntax) : syntax_(std::move(syntax)), tag_(tag_of(syntax_.format)) {}

void ToolCallParser::push(std::string_view piece, ToolDeltas& out) {
  if (piece.empty()) return;
  if (!syntax_.forced_name.empty()) {
    if (num_calls_ == 0) begin(syntax_.forced_name, out);
    return arguments(piece, out);
  }
  if (syntax_.format == ToolFormat::kNone) return append(out, ToolDelta::Kind::kContent, 0, piece);
  input_ += piece;
  run(out);
}

void ToolCallParser::run(ToolDeltas& out) {
  while (next_ < input_.size()) step(input_[next_++], out);
  input_.clear();
  next_ = 0;
}

void ToolCallParser::finish(ToolDeltas& out) {
  // Giving back can start another call, which ends here too.
  while (mode_ != Mode::kText && mode_ != Mode::kClose && mode_ != Mode::kNext && mode_ != Mode::kArgs &&
         mode_ != Mode::kBroken) {
    if (mode_ == Mode::kObject && object_->begun()) break;
    give_back(out);
    run(out);
  }
  if (mode_ == Mode::kBroken) {
    arguments(held_, out);
  } else if (mode_ != Mode::kClose) {
    for (const char c : held_) plain(c, out);
  }
  held_.clear();
  if (num_calls_ == 0) append(out, ToolDelta::Kind::kContent, 0, gap_);
  gap_.clear();
}

void ToolCallParser::step(char c, ToolDeltas& out) {
  switch (mode_) {
    case Mode::kText:
      return text(c, out);
    case Mode::kObject:
      return object(c, out);
    case Mode::kClose:
      return close(c, out);
    case Mode::kStart:
    case Mode::kItem:
    case Mode::kNext:
      return list(c, out);
    case Mode::kName:
      return name(c, out);
    case Mode::kArgs:
      return args(c, out);
    case Mode::kBroken:
      return broken(c, out);
  }
}

void ToolCallParser::text(char c, ToolDeltas& out) {
  if (num_given_back_ >= kMaxGivenBack) return plain(c, out);
  if (c == '{' && at_gap_ && held_.empty() && syntax_.format == ToolFormat::kLlama3) {
    raw_.clear();
    tag_bytes_ = 0;
    start_object(true);
    return object(c, out);
  }
  held_ += c;
  size_t passed = 0;
  while (!tag_.starts_with(std::string_view(held_).substr(passed))) plain(held_[passed++], out);
  held_.erase(0, passed);
  if (held_ != tag_) return;
  raw_ = std::move(held_);
  held_.clear();
  tag_bytes_ = raw_.size();
  in_list_ = false;
  if (syntax_.format == ToolFormat::kMistral)
    mode_ = Mode::kStart;
  else
    start_object(false);
}

// A byte of content.
void ToolCallParser::plain(char c, ToolDeltas& out) {
  if (at_gap_ && is_gap(c)) {
    gap_ += c;
    return;
  }
  at_gap_ = false;
  append(out, ToolDelta::Kind::kContent, 0, gap_);
  gap_.clear();
  append(out, ToolDelta::Kind::kContent, 0, {&c, 1});
}

void ToolCallParser::start_object(bool bare) {
  object_.emplace(bare ? &syntax_.names : nullptr);
  mode_ = Mode::kObject;
}

void ToolCallParser::object(char c, ToolDeltas& out) {
  std::string piece;
  const bool had_begun = object_->begun();
  const CallObject::Step step = object_->feed(c, piece);
  if (!had_begun && object_->begun()) begin(object_->name(), out);
  arguments(piece, out);
  if (!object_->begun()) {
    if (step == CallObject::Step::kBad) {
      --next_;
      return give_back(out);
    }
    raw_ += c;
    return;
  }
  if (step == CallObject::Step::kMore) return;
  const bool whole = step == CallObject::Step::kDone || object_->arguments_done();
  if (!whole) {
    mode_ = Mode::kBroken;
    return broken(c, out);
  }
  end_call();
  if (syntax_.format == ToolFormat::kHermes)
    mode_ = Mode::kClose;
  else if (in_list_)
    mode_ = Mode::kNext;
  if (step == CallObject::Step::kBad) --next_;
}

// White space and </tool_call>; anything else is content.
void ToolCallParser::close(char c, ToolDeltas&) {
  if (held_.empty() && is_json_space(c)) return;
  held_ += c;
  if (held_ == kCloseTag) {
    held_.clear();
    mode_ = Mode::kText;
  } else if (!kCloseTag.starts_with(held_)) {
    input_.replace(0, next_, held_);  // to be read as text; shorter than the tag
    next_ = 0;
    held_.clear();
    mode_ = Mode::kText;
  }
}

void ToolCallParser::list(char c, ToolDeltas& out) {
  if (is_json_space(c)) {
    if (mode_ != Mode::kNext) raw_ += c;
    return;
  }
  if (mode_ == Mode::kNext) {
    if (c == ',')
      mode_ = Mode::kItem, raw_ = c, tag_bytes_ = 1;
    else if (c == ']')
      mode_ = Mode::kText;
    else
      mode_ = Mode::kText, --next_;
    return;
  }
  if (c == '{') {
    start_object(false);
    return object(c, out);
  }
  if (mode_ == Mode::kStart && c == '[') {
    raw_ += c;
    in_list_ = true;
    mode_ = Mode::kItem;
    return;
  }
  if (mode_ == Mode::kStart) {
    name_.clear();
    header_.clear();
    mode_ = Mode::kName;
    return name(c, out);
  }
  --next_;
  give_back(out);
}

// name, then perhaps [CALL_ID]id, then [ARGS] or at once the arguments.
void ToolCallParser::name(char c, ToolDeltas& out) {
  const bool named = !name_.empty();
  const bool header_done = header_.empty() || header_.ends_with(kArgsTag);
  if (header_.empty() && (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.') &&
      name_.size() < 256) {
    name_ += c;
  } else if (named && header_done && c == '{') {
    begin(name_, out);
    scanner_ = JsonScanner();
    mode_ = Mode::kArgs;
    return args(c, out);
  } else if (named && !header_done && header_.size() < kMaxHeader) {
    header_ += c;
  } else if (named && header_.empty() && c == '[') {
    header_ += c;
  } else if (!named || !is_json_space(c)) {
    --next_;
    return give_back(out);
  }
  raw_ += c;
}

void ToolCallParser::args(char c, ToolDeltas& out) {
  const JsonScanner::Step step = scanner_.feed(c);
  if (step == JsonScanner::Step::kBad) {
    mode_ = Mode::kBroken;
    return broken(c, out);
  }
  arguments({&c, 1}, out);
  if (step == JsonScanner::Step::kDone) end_call();
}

void ToolCallParser::broken(char c, ToolDeltas& out) {
  if (syntax_.format != ToolFormat::kHermes) return arguments({&c, 1}, out);
  held_ += c;
  size_t passed = 0;
  while (!kCloseTag.starts_with(std::string_view(held_).substr(passed))) ++passed;
  arguments(std::string_view(held_).substr(0, passed), out);
  held_.erase(0, passed);
  if (held_ != kCloseTag) return;
  held_.clear();
  end_call();
}

void ToolCallParser::begin(const std::string& name, ToolDeltas& out) {
  gap_.clear();
  raw_.clear();
  out.push_back({ToolDelta::Kind::kBegin, num_calls_++, name});
}

void ToolCallParser::arguments(std::string_view piece, ToolDeltas& out) {
  append(out, ToolDelta::Kind::kArguments, num_calls_ - 1, piece);
}

void ToolCallParser::end_call() {
  mode_ = Mode::kText;
  at_gap_ = true;
  gap_.clear();
}

void ToolCallParser::give_back(ToolDeltas& out) {
  ++num_given_back_;
  mode_ = Mode::kText;
  // A bare object is looked at once; what is inside is text.
  if (tag_bytes_ == 0 && !raw_.empty()) tag_bytes_ = 1;
  for (const char c : std::string_view(raw_).substr(0, tag_bytes_)) plain(c, out);
  input_.replace(0, next_, raw_.substr(tag_bytes_));
  next_ = 0;
  raw_.clear();
}

}  // namespace lk::openai
