// SPDX-License-Identifier: Apache-2.0
#include "lk/text/decoder.h"

#include <algorithm>

#include "lk/base/utf8.h"
#include "lk/text/normalizer.h"
#include "lk/text/pre_tokenizer.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

// No decoder at all: tokens with spaces between.
class JoinStage : public DecodeStage {
 public:
  void push(std::string_view fragment, bool ends_token, Output& out) override {
    if (!first_) out.write(" ", false);
    first_ = false;
    out.write(fragment, ends_token);
  }
  void finish(Output&) override {}
  std::string middle_bytes(std::string_view token) override { return " " + std::string(token); }

 private:
  bool first_ = true;
};

// Stages that need a token whole collect its fragments.
class WholeTokenStage : public DecodeStage {
 public:
  void push(std::string_view fragment, bool ends_token, Output& out) final {
    if (ends_token && pending_.empty()) return token(fragment, out);
    pending_ += fragment;
    if (!ends_token) return;
    std::string whole;
    whole.swap(pending_);
    token(whole, out);
  }

 protected:
  virtual void token(std::string_view token, Output& out) = 0;

 private:
  std::string pending_;
};

class ByteLevelStage : public WholeTokenStage {
 public:
  void finish(Output& out) override {
    std::string text;
    utf8::append_lossy(text, bytes_, true);
    bytes_.clear();
    out.write(text, true);
  }
  std::string middle_bytes(std::string_view token) override {
    append_bytes(token);
    return bytes_;
  }

 private:
  // A token with any character outside the byte alphabet stands for itself.
  void append_bytes(std::string_view token) {
    const size_t begin = bytes_.size();
    for (size_t pos = 0; pos < token.size(); pos += utf8::char_length(token[pos])) {
      const int byte = char_byte(utf8::decode(token, pos));
      if (byte < 0) {
        bytes_.replace(begin, bytes_.npos, token);
        break;
      }
      bytes_ += static_cast<char>(byte);
    }
  }
  void token(std::string_view token, Output& out) override {
    append_bytes(token);
    std::string text;
    bytes_.erase(0, utf8::append_lossy(text, bytes_, false));
    if (!text.empty()) out.write(text, false);
  }
  std::string bytes_;  // at most an unfinished character between tokens
};

// Runs of tokens <0x..> are bytes. A run is text only if it is valid UTF-8 as a whole, else each
// byte is U+FFFD: so nothing of a run is final before its end.
class ByteFallbackStage : public WholeTokenStage {
 public:
  void finish(Output& out) override { end_run(out); }
  std::string middle_bytes(std::string_view token) override {
    const int byte = byte_of(token);
    return byte < 0 ? std::string(token) : std::string(1, static_cast<char>(byte));
  }

 private:
  void token(std::string_view token, Output& out) override {
    if (const int byte = byte_of(token); byte >= 0) {
      run_ += static_cast<char>(byte);
      return;
    }
    end_run(out);
    out.write(token, true);
  }
  void end_run(Output& out) {
    if (run_.empty()) return;
    if (!utf8::find_invalid(run_).has_value()) {
      out.write(run_, true);
    } else {
      for (size_t k = 0; k < run_.size(); ++k) out.write(utf8::kReplacement, true);
    }
    run_.clear();
  }
  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return -1;
    const auto digit = [](char c) {
      return c >= '0' && c <= '9'   ? c - '0'
             : c >= 'a' && c <= 'f' ? c - 'a' + 10
             : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                    : -1;
    };
    const int low = digit(token[4]);
    if (token[3] == '+') return low;  // Rust's from_str_radix takes a sign
    const int high = digit(token[3]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
  }
  std::string run_;
};

class FuseStage : public DecodeStage {
 public:
  void push(std::string_view fragment, bool, Output& out) override { out.write(fragment, false); }
  void finish(Output& out) override { out.write("", true); }
  bool joins_tokens() const override { return true; }
};

class MetaspaceStage : public DecodeStage {
 public:
  explicit MetaspaceStage(const MetaspaceOptions& options) : options_(options) {}
  void push(std::string_view fragment, bool ends_token, Output& out) override {
    const std::string text = convert(fragment);
    if (ends_token) first_ = false;
    out.write(text, ends_token);
  }
  void finish(Output&) override {}
  std::string middle_bytes(std::string_view token) override {
    first_ = false;
    return convert(token);
  }

 private:
  std::string convert(std::string_view fragment) const {
    std::string text;
    for (size_t pos = 0; pos < fragment.size();) {
      const std::string_view c = fragment.substr(pos, utf8::char_length(fragment[pos]));
      pos += c.size();
      if (c != options_.replacement) {
        text += c;
      } else if (!first_ || options_.scheme == PrependScheme::kNever) {
        text += ' ';
      }
    }
    return text;
  }
  MetaspaceOptions options_;
  bool first_ = true;
};

class ReplaceStage : public DecodeStage {
 public:
  explicit ReplaceStage(const ReplaceRule& rule) : rule_(rule) {}
  void push(std::string_view fragment, bool ends_token, Output& out) override {
    pending_ += fragment;
    const std::string& literal = rule_.pattern.literal();
    if (!ends_token && literal.empty()) return;  // any later text may change what a pattern matches
    std::string text;
    size_t used = 0;
    if (ends_token) {
      text = replace_all(pending_);
      used = pending_.size();
    } else {
      for (size_t at; (at = pending_.find(literal, used)) != pending_.npos; used = at + literal.size()) {
        text.append(pending_, used, at - used).append(rule_.content);
      }
      const size_t keep = partial_match(std::string_view(pending_).substr(used), literal);
      text.append(pending_, used, pending_.size() - used - keep);
      used = pending_.size() - keep;
    }
    pending_.erase(0, used);
    if (!text.empty() || ends_token) out.write(text, ends_token);
  }
  void finish(Output&) override {}
  std::string middle_bytes(std::string_view token) override { return replace_all(token); }

 private:
  std::string replace_all(std::string_view whole) const {
    WorkBudget budget(whole.size());
    std::vector<Span> spans;
    // A pattern that exceeds its limits replaces nothing: decoding has no way to fail.
    if (!rule_.pattern.find_spans(whole, budget, spans).ok()) spans.assign(1, {0, whole.size(), false});
    std::string text;
    for (const Span& span : spans) {
      text.append(span.is_match ? std::string_view(rule_.content) : whole.substr(span.begin, span.end - span.begin));
    }
    return text;
  }
  // Length of the longest suffix of `text` that begins `literal`.
  static size_t partial_match(std::string_view text, std::string_view literal) {
    for (size_t length = std::min(text.size(), literal.size() - 1); length > 0; --length) {
      if (literal.starts_with(text.substr(text.size() - length))) return length;
    }
    return 0;
  }
  ReplaceRule rule_;
  std::string pending_;
};

class StripStage : public DecodeStage {
 public:
  StripStage(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void push(std::string_view fragment, bool ends_token, Output& out) override {
    while (leading_ < start_ && fragment.starts_with(content_)) {
      fragment.remove_prefix(content_.size());
      ++leading_;
    }
    if (!fragment.empty()) leading_ = start_;  // another character came: what follows is not leading
    pending_ += fragment;
    size_t end = pending_.size();
    size_t tail = 0;  // characters of content at the end, which may turn out to be trailing
    while (tail < stop_ && end >= content_.size() &&
           std::string_view(pending_).substr(end - content_.size(), content_.size()) == content_) {
      end -= content_.size();
      ++tail;
    }
    if (!pending_.empty() || ends_token) out.write(std::string_view(pending_).substr(0, end), ends_token);
    pending_.erase(0, end);
    if (ends_token) {
      pending_.clear();
      leading_ = 0;
    }
  }
  void finish(Output&) override {}
  std::string middle_bytes(std::string_view token) override {
    size_t begin = 0, end = token.size();
    for (size_t k = 0; k < start_ && token.substr(begin).starts_with(content_); ++k) begin += content_.size();
    for (size_t k = 0; k < stop_ && token.substr(begin, end - begin).ends_with(content_); ++k) end -= content_.size();
    return std::string(token.substr(begin, end - begin));
  }

 private:
  std::string content_;  // one character
  size_t start_, stop_;
  size_t leading_ = 0;
  std::string pending_;
};

template <class Stage, class... Args>
class StageFactory : public Decoder::Factory {
 public:
  explicit StageFactory(Args... args) : args_(std::move(args)...) {}
  std::unique_ptr<DecodeStage> make() const override {
    return std::apply([](const Args&... args) { return std::make_unique<Stage>(args...); }, args_);
  }

 private:
  std::tuple<Args...> args_;
};

template <class Stage, class... Args>
std::shared_ptr<const Decoder::Factory> factory(Args... args) {
  return std::make_shared<StageFactory<Stage, Args...>>(std::move(args)...);
}

}  // namespace

// The output of stage `index - 1`: stage `index`, or the text after the last.
class DecodeStream::Link : public DecodeStage::Output {
 public:
  Link(DecodeStream& stream, size_t index, std::string& text) : stream_(stream), index_(index), text_(text) {}
  void write(std::string_view fragment, bool ends_token) override {
    if (index_ == stream_.stages_.size()) {
      text_ += fragment;
      return;
    }
    Link next(stream_, index_ + 1, text_);
    stream_.stages_[index_]->push(fragment, ends_token, next);
  }

 private:
  DecodeStream& stream_;
  size_t index_;
  std::string& text_;
};

void DecodeStream::push(std::string_view token, std::string& text) { Link(*this, 0, text).write(token, true); }

void DecodeStream::finish(std::string& text) {
  for (size_t k = 0; k < stages_.size(); ++k) {
    Link next(*this, k + 1, text);
    stages_[k]->finish(next);
  }
}

DecodeStream Decoder::start() const {
  std::vector<std::unique_ptr<DecodeStage>> stages;
  for (const auto& stage : factories_) stages.push_back(stage->make());
  return DecodeStream(std::move(stages));
}

std::string Decoder::middle_bytes(std::string_view token) const {
  std::string bytes(token);
  for (const auto& factory : factories_) {
    const std::unique_ptr<DecodeStage> stage = factory->make();
    if (stage->joins_tokens()) break;  // what follows sees one long token: its ends are elsewhere
    bytes = stage->middle_bytes(bytes);
  }
  return bytes;
}

Result<Decoder> Decoder::parse(const JsonView& json) {
  Decoder decoder;
  if (json.is_null()) {
    decoder.factories_.push_back(factory<JoinStage>());
    decoder.growth_.added = 1;
  } else {
    LK_RETURN_IF_ERROR(decoder.add(json));
  }
  return decoder;
}

Status Decoder::add(const JsonView& json) {
  constexpr size_t kMaxStages = 16;
  if (factories_.size() >= kMaxStages) {
    return json.error(StatusCode::kUnsupported, "more than {} decoders in sequence", kMaxStages);
  }
  LK_ASSIGN_OR_RETURN(const std::string_view type, json.string("type"));
  if (type == "Sequence") {
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> items, json.array("decoders", kMaxStages));
    for (const JsonView& item : items) LK_RETURN_IF_ERROR(add(item));
  } else if (type == "ByteLevel") {
    growth_ = growth_.then({.factor = 1.5});  // U+FFFD for a byte that takes two to write
    factories_.push_back(factory<ByteLevelStage>());
  } else if (type == "ByteFallback") {
    factories_.push_back(factory<ByteFallbackStage>());
  } else if (type == "Fuse") {
    factories_.push_back(factory<FuseStage>());
  } else if (type == "Metaspace") {
    LK_ASSIGN_OR_RETURN(MetaspaceOptions options, MetaspaceOptions::parse(json));
    factories_.push_back(factory<MetaspaceStage>(std::move(options)));
  } else if (type == "Replace") {
    LK_ASSIGN_OR_RETURN(ReplaceRule rule, ReplaceRule::parse(json));
    growth_ = growth_.then(rule.growth());
    LK_RETURN_IF_ERROR(growth_.check(json));
    has_pattern_ |= rule.pattern.literal().empty();
    factories_.push_back(factory<ReplaceStage>(std::move(rule)));
  } else if (type == "Strip") {
    LK_ASSIGN_OR_RETURN(const JsonView content, json.field("content"));
    LK_ASSIGN_OR_RETURN(const std::string_view text, content.string());
    if (text.empty() || utf8::char_length(text[0]) != text.size()) {
      return content.error(StatusCode::kDataLoss, "must be one character");
    }
    LK_ASSIGN_OR_RETURN(const JsonView start_json, json.field("start"));
    LK_ASSIGN_OR_RETURN(const int64_t start, start_json.integer(0, 1 << 20));
    LK_ASSIGN_OR_RETURN(const JsonView stop_json, json.field("stop"));
    LK_ASSIGN_OR_RETURN(const int64_t stop, stop_json.integer(0, 1 << 20));
    factories_.push_back(factory<StripStage>(std::string(text), static_cast<size_t>(start), static_cast<size_t>(stop)));
  } else {
    return json.error(StatusCode::kUnsupported, "decoder \"{}\" is not supported", type);
  }
  return {};
}

}  // namespace lk
