// SPDX-License-Identifier: Apache-2.0
#define PCRE2_CODE_UNIT_WIDTH 8
#include "lk/text/regex.h"

#include <pcre2.h>

#include <algorithm>

#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr size_t kMaxLiteralBytes = 1024;  // bounds the work per position of the text
constexpr size_t kMaxTranslatedBytes = 1 << 20;
constexpr uint32_t kMaxNesting = 100;
constexpr uint32_t kMatchLimit = 20'000'000;  // backtracking steps of one match: a fraction of a second
constexpr uint32_t kHeapLimitKib = 64 << 10;
constexpr size_t kJitStackBytes = 4 << 20;

std::string error_text(int code) {
  PCRE2_UCHAR buffer[256];
  if (pcre2_get_error_message(code, buffer, sizeof buffer) < 0) return fmt::format("PCRE2 error {}", code);
  return reinterpret_cast<const char*>(buffer);
}

// What matching needs per thread; PCRE2 requires that no two threads share it.
struct MatchScratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);

  MatchScratch() {
    LK_CHECK(data != nullptr && context != nullptr, "out of memory");
    pcre2_set_match_limit(context, kMatchLimit);
    pcre2_set_heap_limit(context, kHeapLimitKib);
    if (stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  MatchScratch(const MatchScratch&) = delete;
  MatchScratch& operator=(const MatchScratch&) = delete;
  ~MatchScratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

}  // namespace

struct Regex::Code {
  pcre2_code* code;
  explicit Code(pcre2_code* c) : code(c) {}
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

Result<Regex> Regex::compile(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return invalid_argument("the regular expression has {} bytes, more than {}", pattern.size(), kMaxPatternBytes);
  }
  LK_ASSIGN_OR_RETURN(const std::string translated, translate_regex(pattern));
  if (translated.size() > kMaxTranslatedBytes) return invalid_argument("the regular expression is too large");
  return build(translated);
}

Result<Regex> Regex::compile_literal(std::string_view text) {
  if (text.empty()) return build("");  // matches between all characters, as in the package
  if (text.size() > kMaxLiteralBytes)
    return unsupported("the pattern has {} bytes, more than {}", text.size(), kMaxLiteralBytes);
  Regex regex;
  regex.literal_ = text;
  return regex;
}

Result<Regex> Regex::build(const std::string& pcre) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  LK_CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), kMaxNesting);
  int error = 0;
  PCRE2_SIZE offset = 0;
  // MULTILINE: in Ruby syntax ^ and $ always match at lines.
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre.data()), pcre.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get());
  if (code == nullptr) return invalid_argument("the regular expression does not compile: {}", error_text(error));
  Regex regex;
  regex.code_ = std::make_shared<const Code>(code);
  // Without JIT (refused by the system, or a pattern it cannot do) the interpreter gives the same
  // matches.
  (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return regex;
}

size_t Regex::min_match_bytes() const {
  if (code_ == nullptr) return literal_.size();
  uint32_t characters = 0;
  return pcre2_pattern_info(code_->code, PCRE2_INFO_MINLENGTH, &characters) == 0 ? characters : 0;
}

Status Regex::find_spans(std::string_view text, WorkBudget& budget, std::vector<Span>& spans) const {
  spans.clear();
  return each_span(text, budget, [&](const Span& span) -> Status {
    spans.push_back(span);
    return {};
  });
}

Status Regex::each_span(std::string_view text, WorkBudget& budget,
                        const std::function<Status(const Span&)>& take) const {
  size_t previous = 0;  // end of the last span
  const auto add_match = [&](size_t begin, size_t end) -> Status {
    if (previous != begin) LK_RETURN_IF_ERROR(take({previous, begin, false}));
    previous = end;
    return take({begin, end, true});
  };
  const auto add_rest = [&]() -> Status {
    return previous == text.size() ? Status() : take({previous, text.size(), false});
  };
  if (text.empty()) return {};
  if (code_ == nullptr) {
    for (size_t at = text.find(literal_); at != text.npos; at = text.find(literal_, at + literal_.size())) {
      LK_RETURN_IF_ERROR(add_match(at, at + literal_.size()));
    }
    return add_rest();
  }

  static thread_local MatchScratch scratch;
  size_t from = 0;
  size_t last_match_end = text.npos;
  while (from <= text.size()) {
    LK_RETURN_IF_ERROR(budget.tick());
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int count = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
    if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
      count = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch.data,
                          scratch.context);
    }
    if (count == PCRE2_ERROR_NOMATCH) break;
    if (count < 0) {
      return invalid_argument("a regular expression of the tokenizer exceeds its limits: {}", error_text(count));
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.data);
    if (range[1] < range[0]) return invalid_argument("a regular expression of the tokenizer matches backwards");
    if (range[0] == range[1] && range[1] == last_match_end) {
      // As Oniguruma's find_iter: no empty match right after a match; try from the next character.
      from += from < text.size() ? utf8::char_length(text[from]) : 1;
      continue;
    }
    const size_t end = range[1];
    LK_RETURN_IF_ERROR(add_match(range[0], end));
    from = last_match_end = end;
  }
  return add_rest();
}

}  // namespace lk
