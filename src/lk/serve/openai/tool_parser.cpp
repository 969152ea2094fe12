// SPDX-License-Identifier: Apache-2.0
#include "lk/serve/openai/tool_parser.h"

#include <algorithm>
#include <cctype>

#include "lk/serve/openai/call_object.h"
#include "lk/serve/openai/python_call.h"

namespace lk::openai {
namespace {

// Looking again at text that was no call takes time; an answer full of beginnings is just text after so many.
constexpr int kMaxGivenBack = 64;
constexpr std::string_view kArgsTag = "[ARGS]";
constexpr size_t kMaxHeader = 64;  // [CALL_ID]...[ARGS]

bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.'; }

void append(ToolDeltas& out, ToolDelta::Kind kind, int call, std::string_view text) {
  if (text.empty()) return;
  if (out.empty() || out.back().kind != kind || out.back().call != call) out.push_back({kind, call, {}});
  out.back().text += text;
}

}  // namespace

ToolCallParser::ToolCallParser(ToolSyntax syntax) : syntax_(std::move(syntax)), row_(&tool_row(syntax_.format)) {}

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
  while (mode_ == Mode::kStart || mode_ == Mode::kItem || mode_ == Mode::kName ||
         (mode_ == Mode::kBody && !body_->begun())) {
    give_back(out);
    run(out);
  }
  if (mode_ == Mode::kBroken) {
    arguments(held_, out);
  } else if (mode_ != Mode::kClose) {
    for (const char c : held_) plain(c, out);
  }
  held_.clear();
  if (num_calls_ == 0 && syntax_.may_be_empty) return begin(syntax_.forced_name, out);
  if (num_calls_ == 0) content(gap_, out);
  gap_.clear();
}

void ToolCallParser::step(char c, ToolDeltas& out) {
  switch (mode_) {
    case Mode::kText:
      return text(c, out);
    case Mode::kStart:
      return start(c, out);
    case Mode::kItem:
      return item(c, out);
    case Mode::kBody:
      return body(c, out);
    case Mode::kNext:
      return next(c);
    case Mode::kName:
      return name(c, out);
    case Mode::kArgs:
      return args(c, out);
    case Mode::kClose:
      return close(c);
    case Mode::kBroken:
      return broken(c, out);
  }
}

void ToolCallParser::text(char c, ToolDeltas& out) {
  if (num_given_back_ >= kMaxGivenBack) return plain(c, out);
  const char opens = row_->body == ToolRow::Body::kPython ? '[' : '{';
  if (row_->bare && c == opens && at_gap_ && held_.empty()) {
    raw_.clear();
    tag_bytes_ = 0;
    bare_ = true;
    in_list_ = opens == '[';
    if (!in_list_) return start_call(c, out);
    raw_ = c;
    mode_ = Mode::kItem;
    return;
  }
  held_ += c;
  const auto may_be_tag = [&](std::string_view held) {
    return std::ranges::any_of(row_->tags, [&](const std::string& tag) { return tag.starts_with(held); });
  };
  size_t passed = 0;
  while (!may_be_tag(std::string_view(held_).substr(passed))) plain(held_[passed++], out);
  held_.erase(0, passed);
  if (std::ranges::find(row_->tags, held_) != row_->tags.end()) found_tag(out);
}

void ToolCallParser::found_tag(ToolDeltas& out) {
  raw_ = std::move(held_);
  held_.clear();
  tag_bytes_ = raw_.size();
  in_list_ = bare_ = false;
  mode_ = Mode::kStart;
  if (row_->body != ToolRow::Body::kXml || raw_ != "<function=") return;
  // The tag is a part of the call.
  const std::string tag = std::exchange(raw_, {});
  start_call(tag[0], out);
  for (const char c : std::string_view(tag).substr(1)) body(c, out);
}

void ToolCallParser::content(std::string_view text, ToolDeltas& out) {
  if (!syntax_.forced) append(out, ToolDelta::Kind::kContent, 0, text);
}

// A byte of content.
void ToolCallParser::plain(char c, ToolDeltas& out) {
  if (at_gap_ && is_gap(c)) {
    gap_ += c;
    return;
  }
  at_gap_ = false;
  content(gap_, out);
  gap_.clear();
  content({&c, 1}, out);
}

// Whether a call can begin with this byte, behind a tag or in a list.
bool ToolCallParser::begins_call(char c) const {
  switch (row_->body) {
    case ToolRow::Body::kPython:
      return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_';
    case ToolRow::Body::kXml:
      return c == '<' || c == '{';
    case ToolRow::Body::kJson:
      break;
  }
  return c == '{';
}

void ToolCallParser::start_call(char c, ToolDeltas& out) {
  const std::vector<std::string>* names = bare_ ? &syntax_.names : nullptr;
  if (row_->body == ToolRow::Body::kPython)
    body_ = std::make_unique<PythonCall>(names);
  else if (c == '<')
    body_ = std::make_unique<XmlCall>(syntax_.kinds);
  else
    body_ = std::make_unique<CallObject>(names);
  mode_ = Mode::kBody;
  body(c, out);
}

void ToolCallParser::start(char c, ToolDeltas& out) {
  if (is_json_space(c)) {
    raw_ += c;
  } else if (row_->list && c == '[') {
    raw_ += c;
    in_list_ = true;
    mode_ = Mode::kItem;
  } else if (begins_call(c)) {
    start_call(c, out);
  } else if (row_->named) {
    name_.clear();
    header_.clear();
    mode_ = Mode::kName;
    name(c, out);
  } else {
    --next_;
    give_back(out);
  }
}

void ToolCallParser::item(char c, ToolDeltas& out) {
  if (is_json_space(c)) {
    raw_ += c;
  } else if (begins_call(c)) {
    start_call(c, out);
  } else {
    --next_;
    give_back(out);
  }
}

void ToolCallParser::next(char c) {
  if (is_json_space(c)) return;
  if (c == ',') {
    mode_ = Mode::kItem;
    raw_ = c;
    tag_bytes_ = 1;
    return;
  }
  mode_ = c == ']' ? after_calls() : Mode::kText;
  if (c != ']') --next_;
}

void ToolCallParser::body(char c, ToolDeltas& out) {
  std::string piece;
  const bool had_begun = body_->begun();
  const CallBody::Step step = body_->feed(c, piece);
  if (!had_begun && body_->begun()) begin(body_->name(), out);
  arguments(piece, out);
  if (!body_->begun()) {
    if (step == CallBody::Step::kBad) {
      --next_;
      return give_back(out);
    }
    raw_ += c;
    return;
  }
  if (step == CallBody::Step::kMore) return;
  const bool whole = step == CallBody::Step::kDone || body_->arguments_done();
  if (!whole) {
    mode_ = Mode::kBroken;
    return broken(c, out);
  }
  end_call();
  mode_ = in_list_ ? Mode::kNext : after_calls();
  if (step == CallBody::Step::kBad) --next_;
}

// White space and what closes calls; anything else is content.
void ToolCallParser::close(char c) {
  if (held_.empty() && is_json_space(c)) return;
  held_ += c;
  if (held_ == row_->close) {
    held_.clear();
    mode_ = Mode::kText;
  } else if (!row_->close.starts_with(held_)) {
    mode_ = Mode::kText;
    read_again(std::exchange(held_, {}));
  }
}

// name, then perhaps [CALL_ID]id, then [ARGS] or at once the arguments.
void ToolCallParser::name(char c, ToolDeltas& out) {
  const bool named = !name_.empty();
  const bool header_done = header_.empty() || header_.ends_with(kArgsTag);
  if (header_.empty() && is_name(c) && name_.size() < kMaxCallName) {
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
  const std::string& end = row_->close;
  if (end.empty()) return arguments({&c, 1}, out);
  held_ += c;
  size_t passed = 0;
  while (!end.starts_with(std::string_view(held_).substr(passed))) ++passed;
  arguments(std::string_view(held_).substr(0, passed), out);
  held_.erase(0, passed);
  if (held_ != end) return;
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

// Puts text, which was taken already, before what was not.
void ToolCallParser::read_again(std::string_view text) {
  input_.replace(0, next_, text);
  next_ = 0;
}

void ToolCallParser::give_back(ToolDeltas& out) {
  ++num_given_back_;
  mode_ = Mode::kText;
  // A bare call is looked at once; what is inside is text.
  if (tag_bytes_ == 0 && !raw_.empty()) tag_bytes_ = 1;
  for (const char c : std::string_view(raw_).substr(0, tag_bytes_)) plain(c, out);
  const std::string rest = raw_.substr(std::min(raw_.size(), tag_bytes_));
  raw_.clear();
  read_again(rest);
}

}  // namespace lk::openai
