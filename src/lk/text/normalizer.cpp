// SPDX-License-Identifier: Apache-2.0
#include "lk/text/normalizer.h"

#include <algorithm>
#include <array>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr int kNumByteChars = 0x144;  // the alphabet of 256 ends at U+0143

struct ByteAlphabet {
  std::array<std::string, 256> chars;
  std::array<int, kNumByteChars> bytes;

  // Source: bytes_to_unicode of GPT-2's encoder.py: printable bytes stand for themselves, the rest
  // for U+0100 on.
  ByteAlphabet() {
    bytes.fill(-1);
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      const uint32_t code_point = printable ? b : next++;
      utf8::append(chars[b], code_point);
      bytes[code_point] = static_cast<int>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet instance;
  return instance;
}

class Sequence : public Normalizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<const Normalizer>> parts) : parts_(std::move(parts)) {}
  Status apply(NormalizedText& text, WorkBudget& budget) const override {
    for (const auto& part : parts_) {
      LK_RETURN_IF_ERROR(budget.spend(text.text.size()));
      LK_RETURN_IF_ERROR(part->apply(text, budget));
      LK_RETURN_IF_ERROR(budget.check_size(text.text.size()));
    }
    return {};
  }
  Growth growth() const override {
    Growth all;
    for (const auto& part : parts_) all = all.then(part->growth());
    return all;
  }

 private:
  std::vector<std::unique_ptr<const Normalizer>> parts_;
};

class Prepend : public Normalizer {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  Status apply(NormalizedText& text, WorkBudget&) const override {
    if (text.text.empty()) return {};
    const uint32_t origin = text.origin_at(0);
    text.text.insert(0, prefix_);
    if (text.track) text.origins.insert(text.origins.begin(), prefix_.size(), origin);
    return {};
  }
  Growth growth() const override { return {.added = static_cast<double>(prefix_.size())}; }

 private:
  std::string prefix_;
};

class Replace : public Normalizer {
 public:
  explicit Replace(ReplaceRule rule) : rule_(std::move(rule)) {}
  Status apply(NormalizedText& text, WorkBudget& budget) const override {
    NormalizedText out{.text = {}, .origins = {}, .track = text.track};
    out.text.reserve(text.text.size());
    LK_RETURN_IF_ERROR(rule_.pattern.each_span(text.text, budget, [&](const Span& span) -> Status {
      if (!span.is_match) {
        out.add(std::string_view(text.text).substr(span.begin, span.end - span.begin), text.origins_at(span.begin));
        return {};
      }
      LK_RETURN_IF_ERROR(budget.check_size(out.text.size() + rule_.content.size()));
      out.add(rule_.content, span.end == 0 ? 0 : text.origin_at(span.end - 1));
      return {};
    }));
    text = std::move(out);
    return {};
  }
  Growth growth() const override { return rule_.growth(); }

 private:
  ReplaceRule rule_;
};

class Strip : public Normalizer {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  Status apply(NormalizedText& text, WorkBudget&) const override {
    const std::string_view view = text.text;
    size_t begin = 0, end = view.size();
    while (left_ && begin < end && unicode::is_space(utf8::decode(view, begin))) {
      begin += utf8::char_length(view[begin]);
    }
    while (right_ && end > begin) {
      const size_t last = utf8::previous_start(view, end);
      if (!unicode::is_space(utf8::decode(view, last))) break;
      end = last;
    }
    text.text = text.text.substr(begin, end - begin);
    if (text.track) {
      text.origins = std::vector<uint32_t>(text.origins.begin() + static_cast<ptrdiff_t>(begin),
                                           text.origins.begin() + static_cast<ptrdiff_t>(end));
    }
    return {};
  }

 private:
  bool left_, right_;
};

class UnicodeForm : public Normalizer {
 public:
  explicit UnicodeForm(unicode::Form form) : form_(form) {}
  Status apply(NormalizedText& text, WorkBudget&) const override {
    if (text.track) return apply_tracked(text);
    LK_ASSIGN_OR_RETURN(text.text, unicode::normalize(text.text, form_));
    return {};
  }

 private:
  // An ASCII character never joins what is before it, so the text is normalised from one to the next. In between, equal
  // bytes from the left keep their origins and the rest is shared out in order.
  Status apply_tracked(NormalizedText& text) const {
    NormalizedText out{.text = {}, .origins = {}, .track = true};
    for (size_t begin = 0; begin < text.text.size();) {
      size_t end = begin + 1;
      while (end < text.text.size() && static_cast<unsigned char>(text.text[end]) >= 0x80) ++end;
      LK_ASSIGN_OR_RETURN(const std::string part,
                          unicode::normalize(std::string_view(text.text).substr(begin, end - begin), form_));
      for (size_t k = 0; k < part.size(); ++k)
        out.origins.push_back(text.origins[begin + std::min(k, end - begin - 1)]);
      out.text += part;
      begin = end;
    }
    text = std::move(out);
    return {};
  }

  unicode::Form form_;
};

// Normalizers that map each character on its own.
class PerCharacter : public Normalizer {
 public:
  Status apply(NormalizedText& text, WorkBudget&) const override {
    NormalizedText out{.text = {}, .origins = {}, .track = text.track};
    out.text.reserve(text.text.size());
    std::string mapped;
    for (size_t pos = 0; pos < text.text.size(); pos += utf8::char_length(text.text[pos])) {
      mapped.clear();
      map(utf8::decode(text.text, pos), mapped);
      out.add(mapped, text.origin_at(pos));
    }
    text = std::move(out);
    return {};
  }

 private:
  virtual void map(uint32_t code_point, std::string& out) const = 0;
};

class Lowercase : public PerCharacter {
  void map(uint32_t code_point, std::string& out) const override { unicode::append_lower(out, code_point); }
};

class StripAccents : public PerCharacter {
  void map(uint32_t code_point, std::string& out) const override {
    if (!unicode::is_mark(code_point)) utf8::append(out, code_point);
  }
};

class ByteLevel : public PerCharacter {
  Growth growth() const override { return {.factor = 2}; }
  void map(uint32_t code_point, std::string& out) const override {
    std::string bytes;
    utf8::append(bytes, code_point);
    for (const char byte : bytes) out += byte_char(static_cast<unsigned char>(byte));
  }
};

}  // namespace

const std::string& byte_char(unsigned char byte) { return alphabet().chars[byte]; }

int char_byte(uint32_t code_point) { return code_point < kNumByteChars ? alphabet().bytes[code_point] : -1; }

Result<Regex> parse_pattern(const JsonView& json) {
  LK_RETURN_IF_ERROR(json.expect_object());
  const bool literal = json.has("String");
  LK_ASSIGN_OR_RETURN(const JsonView field, json.field(literal ? "String" : "Regex"));
  LK_ASSIGN_OR_RETURN(const std::string_view text, field.string());
  Result<Regex> regex = literal ? Regex::compile_literal(text) : Regex::compile(text);
  if (!regex.ok()) return regex.status().with_context(field.where());
  return regex;
}

Result<ReplaceRule> ReplaceRule::parse(const JsonView& json) {
  LK_ASSIGN_OR_RETURN(const JsonView pattern_json, json.field("pattern"));
  LK_ASSIGN_OR_RETURN(Regex pattern, parse_pattern(pattern_json));
  LK_ASSIGN_OR_RETURN(const std::string_view content, json.string("content"));
  return ReplaceRule{std::move(pattern), std::string(content)};
}

Growth ReplaceRule::growth() const {
  const auto made = static_cast<double>(content.size()), used = static_cast<double>(pattern.min_match_bytes());
  // Empty matches stand before every character and at the end.
  return used > 0 ? Growth{.factor = std::max(1.0, made / used)} : Growth{.factor = 1 + made, .added = made};
}

namespace {

// `num_parts`: of the whole section so far.
Result<std::unique_ptr<const Normalizer>> parse_part(const JsonView& json, size_t& num_parts) {
  using Pointer = std::unique_ptr<const Normalizer>;
  constexpr size_t kMaxParts = 256;
  if (++num_parts > kMaxParts) return json.error(StatusCode::kUnsupported, "more than {} normalizers", kMaxParts);
  LK_ASSIGN_OR_RETURN(const std::string_view type, json.string("type"));
  if (type == "Sequence") {
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> items, json.array("normalizers"));
    std::vector<Pointer> parts;
    Growth growth;
    for (const JsonView& item : items) {
      LK_RETURN_IF_ERROR(item.expect_object());
      LK_ASSIGN_OR_RETURN(Pointer part, parse_part(item, num_parts));
      growth = growth.then(part->growth());
      LK_RETURN_IF_ERROR(growth.check(item));
      parts.push_back(std::move(part));
    }
    return Pointer(std::make_unique<Sequence>(std::move(parts)));
  }
  if (type == "Prepend") {
    LK_ASSIGN_OR_RETURN(const std::string_view prefix, json.string("prepend"));
    return Pointer(std::make_unique<Prepend>(std::string(prefix)));
  }
  if (type == "Replace") {
    LK_ASSIGN_OR_RETURN(ReplaceRule rule, ReplaceRule::parse(json));
    return Pointer(std::make_unique<Replace>(std::move(rule)));
  }
  if (type == "Strip") {
    LK_ASSIGN_OR_RETURN(const bool left, json.boolean("strip_left"));
    LK_ASSIGN_OR_RETURN(const bool right, json.boolean("strip_right"));
    return Pointer(std::make_unique<Strip>(left, right));
  }
  static constexpr std::pair<std::string_view, unicode::Form> kForms[] = {{"NFC", unicode::Form::kNfc},
                                                                          {"NFD", unicode::Form::kNfd},
                                                                          {"NFKC", unicode::Form::kNfkc},
                                                                          {"NFKD", unicode::Form::kNfkd}};
  for (const auto& [name, form] : kForms) {
    if (type == name) return Pointer(std::make_unique<UnicodeForm>(form));
  }
  if (type == "Lowercase") return Pointer(std::make_unique<Lowercase>());
  if (type == "StripAccents") return Pointer(std::make_unique<StripAccents>());
  if (type == "ByteLevel") return Pointer(std::make_unique<ByteLevel>());
  return json.error(StatusCode::kUnsupported, "normalizer \"{}\" is not supported", type);
}

}  // namespace

Result<std::unique_ptr<const Normalizer>> Normalizer::parse(const JsonView& json) {
  if (json.is_null()) return std::unique_ptr<const Normalizer>();
  size_t num_parts = 0;
  LK_ASSIGN_OR_RETURN(std::unique_ptr<const Normalizer> whole, parse_part(json, num_parts));
  LK_RETURN_IF_ERROR(whole->growth().check(json));
  return whole;
}

}  // namespace lk
