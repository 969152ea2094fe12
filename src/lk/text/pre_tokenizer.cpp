// SPDX-License-Identifier: Apache-2.0
#include "lk/text/pre_tokenizer.h"

#include <algorithm>

#include "lk/base/utf8.h"
#include "lk/text/normalizer.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

// Source: pre_tokenizers/byte_level.rs.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Replaces every piece that is not a token by the spans find(text, spans) keeps of it, empty ones
// left out.
template <class Find>
Status split_pieces(PieceList& list, Find find) {
  std::vector<Piece> out;
  out.reserve(list.pieces.size());
  std::vector<Span> spans;
  for (const Piece& piece : list.pieces) {
    if (piece.token >= 0) {
      out.push_back(piece);
      continue;
    }
    LK_RETURN_IF_ERROR(find(list.text(piece), spans));
    for (const Span& span : spans) {
      if (span.begin == span.end) continue;
      const size_t begin = piece.begin + span.begin;
      out.push_back({begin, piece.begin + span.end, list.buffer.origin_at(begin), -1});
    }
  }
  list.pieces = std::move(out);
  return {};
}

// Rewrites the text of every piece that is not a token: write(piece, out) appends the new text.
template <class Write>
Status rewrite_pieces(PieceList& list, const WorkBudget& budget, Write write) {
  NormalizedText out{.text = {}, .origins = {}, .track = list.buffer.track};
  out.text.reserve(list.buffer.text.size() * 5 / 4 + list.pieces.size());
  for (Piece& piece : list.pieces) {
    const size_t begin = out.text.size();
    if (piece.token < 0) write(piece, out);
    piece.begin = begin;
    piece.end = out.text.size();
    LK_RETURN_IF_ERROR(budget.check_size(out.text.size()));
  }
  list.buffer = std::move(out);
  return {};
}

// The cover of `text` by characters in a class and the rest.
template <class Predicate>
void find_chars(std::string_view text, Predicate in_class, std::vector<Span>& spans) {
  spans.clear();
  size_t previous = 0;
  for (size_t pos = 0; pos < text.size();) {
    const size_t next = pos + utf8::char_length(text[pos]);
    if (in_class(utf8::decode(text, pos))) {
      if (previous < pos) spans.push_back({previous, pos, false});
      spans.push_back({pos, next, true});
      previous = next;
    }
    pos = next;
  }
  if (previous < text.size()) spans.push_back({previous, text.size(), false});
}

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<const PreTokenizer>> parts) : parts_(std::move(parts)) {}
  Status apply(PieceList& list, WorkBudget& budget) const override {
    for (const auto& part : parts_) {
      LK_RETURN_IF_ERROR(budget.spend(list.buffer.text.size()));
      LK_RETURN_IF_ERROR(part->apply(list, budget));
    }
    return {};
  }
  Growth growth() const override {
    Growth all;
    for (const auto& part : parts_) all = all.then(part->growth());
    return all;
  }
  bool needs_origins() const override {
    return std::any_of(parts_.begin(), parts_.end(), [](const auto& part) { return part->needs_origins(); });
  }

 private:
  std::vector<std::unique_ptr<const PreTokenizer>> parts_;
};

class ByteLevel : public PreTokenizer {
 public:
  ByteLevel(bool add_prefix_space, std::optional<Regex> regex)
      : add_prefix_space_(add_prefix_space), regex_(std::move(regex)) {}
  Status apply(PieceList& list, WorkBudget& budget) const override {
    if (add_prefix_space_) {
      LK_RETURN_IF_ERROR(rewrite_pieces(list, budget, [&](const Piece& piece, NormalizedText& out) {
        const std::string_view text = list.text(piece);
        if (!text.starts_with(' ')) out.add(" ", list.buffer.origin_at(piece.begin));
        out.add(text, list.buffer.origins_at(piece.begin));
      }));
    }
    if (regex_.has_value()) {
      LK_RETURN_IF_ERROR(split_pieces(list, [&](std::string_view text, std::vector<Span>& spans) {
        return regex_->find_spans(text, budget, spans);
      }));
    }
    return rewrite_pieces(list, budget, [&](const Piece& piece, NormalizedText& out) {
      for (size_t pos = piece.begin; pos < piece.end; ++pos) {
        const std::string& mapped = byte_char(static_cast<unsigned char>(list.buffer.text[pos]));
        out.add(mapped, list.buffer.origin_at(pos));
      }
    });
  }
  Growth growth() const override { return {.factor = 2}; }

 private:
  bool add_prefix_space_;
  std::optional<Regex> regex_;
};

class Split : public PreTokenizer {
 public:
  Split(Regex regex, SplitBehavior behavior, bool invert)
      : regex_(std::move(regex)), behavior_(behavior), invert_(invert) {}
  Status apply(PieceList& list, WorkBudget& budget) const override {
    return split_pieces(list, [&](std::string_view text, std::vector<Span>& spans) -> Status {
      LK_RETURN_IF_ERROR(regex_.find_spans(text, budget, spans));
      if (invert_) {
        for (Span& span : spans) span.is_match = !span.is_match;
      }
      apply_behavior(behavior_, spans);
      return {};
    });
  }

 private:
  Regex regex_;
  SplitBehavior behavior_;
  bool invert_;
};

class Metaspace : public PreTokenizer {
 public:
  explicit Metaspace(MetaspaceOptions options)
      : options_(std::move(options)), code_point_(utf8::decode(options_.replacement, 0)) {}
  bool needs_origins() const override { return options_.scheme == PrependScheme::kFirst; }
  Growth growth() const override { return {.factor = static_cast<double>(options_.replacement.size())}; }
  Status apply(PieceList& list, WorkBudget& budget) const override {
    LK_RETURN_IF_ERROR(rewrite_pieces(list, budget, [&](const Piece& piece, NormalizedText& out) {
      const std::string_view text = list.text(piece);
      const bool prepend =
          options_.scheme == PrependScheme::kAlways || (options_.scheme == PrependScheme::kFirst && piece.origin == 0);
      if (prepend && !text.starts_with(options_.replacement) && !text.starts_with(' ')) {
        out.add(options_.replacement, list.buffer.origin_at(piece.begin));
      }
      for (size_t pos = piece.begin; pos < piece.end; ++pos) {
        const std::string_view byte = std::string_view(list.buffer.text).substr(pos, 1);
        out.add(byte == " " ? std::string_view(options_.replacement) : byte, list.buffer.origin_at(pos));
      }
    }));
    if (!options_.split) return {};
    return split_pieces(list, [&](std::string_view text, std::vector<Span>& spans) -> Status {
      find_chars(
          text, [&](uint32_t c) { return c == code_point_; }, spans);
      apply_behavior(SplitBehavior::kMergedWithNext, spans);
      return {};
    });
  }

 private:
  MetaspaceOptions options_;
  uint32_t code_point_;
};

// Pre-tokenizers that split at single characters of a class.
class CharSplit : public PreTokenizer {
 public:
  CharSplit(bool (*in_class)(uint32_t), SplitBehavior behavior) : in_class_(in_class), behavior_(behavior) {}
  Status apply(PieceList& list, WorkBudget&) const override {
    return split_pieces(list, [&](std::string_view text, std::vector<Span>& spans) -> Status {
      find_chars(text, in_class_, spans);
      apply_behavior(behavior_, spans);
      return {};
    });
  }

 private:
  bool (*in_class_)(uint32_t);
  SplitBehavior behavior_;
};

// The Rust pattern \w+|[^\w\s]+: runs of word characters, runs of others, white space dropped.
class Whitespace : public PreTokenizer {
 public:
  Status apply(PieceList& list, WorkBudget&) const override {
    return split_pieces(list, [](std::string_view text, std::vector<Span>& spans) -> Status {
      spans.clear();
      enum class Kind { kSpace, kWord, kOther };
      Kind previous = Kind::kSpace;
      for (size_t pos = 0; pos < text.size();) {
        const size_t next = pos + utf8::char_length(text[pos]);
        const uint32_t c = utf8::decode(text, pos);
        const Kind kind = unicode::is_word(c) ? Kind::kWord : unicode::is_space(c) ? Kind::kSpace : Kind::kOther;
        if (kind != Kind::kSpace) {
          if (kind == previous) {
            spans.back().end = next;
          } else {
            spans.push_back({pos, next, true});
          }
        }
        previous = kind;
        pos = next;
      }
      return {};
    });
  }
};

Result<SplitBehavior> parse_behavior(const JsonView& json) {
  LK_ASSIGN_OR_RETURN(const JsonView field, json.field("behavior"));
  LK_ASSIGN_OR_RETURN(const std::string_view name, field.string());
  static constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  return field.error(StatusCode::kUnsupported, "split behavior \"{}\" is not supported", name);
}

}  // namespace

// Source: NormalizedString::split. The comparisons with previous_match, false at first, are the
// package's.
void apply_behavior(SplitBehavior behavior, std::vector<Span>& spans) {
  std::vector<Span> out;
  bool previous_match = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return;
    case SplitBehavior::kRemoved:
      std::erase_if(spans, [](const Span& span) { return span.is_match; });
      return;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious:
      for (const Span& span : spans) {
        const bool merge =
            behavior == SplitBehavior::kContiguous ? span.is_match == previous_match : span.is_match && !previous_match;
        if (merge && !out.empty()) {
          out.back().end = span.end;
        } else {
          out.push_back(span);
        }
        previous_match = span.is_match;
      }
      break;
    case SplitBehavior::kMergedWithNext:
      for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
        if (span->is_match && !previous_match && !out.empty()) {
          out.back().begin = span->begin;
        } else {
          out.push_back(*span);
        }
        previous_match = span->is_match;
      }
      std::reverse(out.begin(), out.end());
      break;
  }
  spans = std::move(out);
}

Result<MetaspaceOptions> MetaspaceOptions::parse(const JsonView& json) {
  MetaspaceOptions options;
  LK_ASSIGN_OR_RETURN(const JsonView replacement, json.field("replacement"));
  LK_ASSIGN_OR_RETURN(const std::string_view text, replacement.string());
  if (text.empty() || utf8::char_length(text[0]) != text.size()) {
    return replacement.error(StatusCode::kDataLoss, "must be one character");
  }
  options.replacement = text;
  if (json.has("prepend_scheme")) {
    LK_ASSIGN_OR_RETURN(const JsonView scheme, json.field("prepend_scheme"));
    LK_ASSIGN_OR_RETURN(const std::string_view name, scheme.string());
    if (name == "first") {
      options.scheme = PrependScheme::kFirst;
    } else if (name == "never") {
      options.scheme = PrependScheme::kNever;
    } else if (name != "always") {
      return scheme.error(StatusCode::kUnsupported, "prepend scheme \"{}\" is not supported", name);
    }
  }
  LK_ASSIGN_OR_RETURN(const bool add_prefix_space, json.boolean_or("add_prefix_space", true));
  if (!add_prefix_space && options.scheme != PrependScheme::kNever) {  // refused by the package, too
    return json.error(StatusCode::kDataLoss, "add_prefix_space contradicts prepend_scheme");
  }
  LK_ASSIGN_OR_RETURN(options.split, json.boolean_or("split", true));
  return options;
}

namespace {

// `num_parts`: of the whole section so far.
Result<std::unique_ptr<const PreTokenizer>> parse_part(const JsonView& json, size_t& num_parts) {
  using Pointer = std::unique_ptr<const PreTokenizer>;
  constexpr size_t kMaxParts = 256;
  if (++num_parts > kMaxParts) return json.error(StatusCode::kUnsupported, "more than {} pre-tokenizers", kMaxParts);
  LK_ASSIGN_OR_RETURN(const std::string_view type, json.string("type"));
  if (type == "Sequence") {
    LK_ASSIGN_OR_RETURN(const std::vector<JsonView> items, json.array("pretokenizers"));
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
  if (type == "ByteLevel") {
    LK_ASSIGN_OR_RETURN(const bool add_prefix_space, json.boolean("add_prefix_space"));
    LK_ASSIGN_OR_RETURN(const bool use_regex, json.boolean_or("use_regex", true));
    std::optional<Regex> regex;
    if (use_regex) {
      LK_ASSIGN_OR_RETURN(regex, Regex::compile(kGpt2Pattern));
    }
    return Pointer(std::make_unique<ByteLevel>(add_prefix_space, std::move(regex)));
  }
  if (type == "Split") {
    LK_ASSIGN_OR_RETURN(const JsonView pattern, json.field("pattern"));
    LK_ASSIGN_OR_RETURN(Regex regex, parse_pattern(pattern));
    LK_ASSIGN_OR_RETURN(const SplitBehavior behavior, parse_behavior(json));
    LK_ASSIGN_OR_RETURN(const bool invert, json.boolean("invert"));
    return Pointer(std::make_unique<Split>(std::move(regex), behavior, invert));
  }
  if (type == "Metaspace") {
    LK_ASSIGN_OR_RETURN(MetaspaceOptions options, MetaspaceOptions::parse(json));
    return Pointer(std::make_unique<Metaspace>(std::move(options)));
  }
  if (type == "Whitespace") return Pointer(std::make_unique<Whitespace>());
  if (type == "WhitespaceSplit") {
    return Pointer(std::make_unique<CharSplit>(&unicode::is_space, SplitBehavior::kRemoved));
  }
  if (type == "Digits") {
    LK_ASSIGN_OR_RETURN(const bool individual, json.boolean("individual_digits"));
    const SplitBehavior behavior = individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous;
    return Pointer(std::make_unique<CharSplit>(&unicode::is_numeric, behavior));
  }
  if (type == "Punctuation") {
    SplitBehavior behavior = SplitBehavior::kIsolated;
    if (json.has("behavior")) {
      LK_ASSIGN_OR_RETURN(behavior, parse_behavior(json));
    }
    return Pointer(std::make_unique<CharSplit>(&unicode::is_punctuation, behavior));
  }
  return json.error(StatusCode::kUnsupported, "pre-tokenizer \"{}\" is not supported", type);
}

}  // namespace

Result<std::unique_ptr<const PreTokenizer>> PreTokenizer::parse(const JsonView& json) {
  if (json.is_null()) return std::unique_ptr<const PreTokenizer>();
  size_t num_parts = 0;
  return parse_part(json, num_parts);
}

}  // namespace lk
