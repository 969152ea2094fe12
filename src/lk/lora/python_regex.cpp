// SPDX-License-Identifier: Apache-2.0
#include "lk/lora/python_regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>

namespace lk {
namespace {

constexpr size_t kMaxPatternBytes = 4096;
constexpr uint32_t kMatchLimit = 100'000;  // backtracking steps; module names need a few hundred

struct Deleter {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Deleter>;

Status refuse(const std::string& pattern, std::string_view why) {
  return invalid_argument("regular expression '{}': {}", pattern, why);
}

// Rewrites the few constructs that mean something else to PCRE2, refuses those that Python lacks.
class Translator {
 public:
  explicit Translator(const std::string& pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      Status status;
      if (c == '\\')
        status = escape();
      else if (c == '[')
        status = character_class();
      else if (c == '(')
        status = group();
      else if (c == '{' && peek(1) == ',')
        status = open_quantifier();
      else {
        out_ += c;
        ++at_;
      }
      LK_RETURN_IF_ERROR(status);
    }
    return std::move(out_);
  }

 private:
  char peek(size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }

  Status escape() {
    const char c = peek(1);
    if (at_ + 1 >= pattern_.size()) return refuse(pattern_, "ends in a backslash");
    if (c == 'v')
      out_ += "\\x0b";  // PCRE2: any vertical space
    else if (c == 'Z')
      out_ += "\\z";  // PCRE2: also before a final newline
    else if (std::isalpha(static_cast<unsigned char>(c)) &&
             std::string_view("abBdDfnrsStwWxA").find(c) == std::string_view::npos) {
      return refuse(pattern_, fmt::format("the escape \\{} is not supported", c));
    } else {
      out_ += '\\';
      out_ += c;
    }
    at_ += 2;
    return Status();
  }
  Status character_class() {
    out_ += '[';
    ++at_;
    if (peek(0) == '^') {
      out_ += '^';
      ++at_;
    }
    for (bool first = true; at_ < pattern_.size(); first = false) {
      const char c = pattern_[at_];
      if (c == ']' && !first) {
        out_ += ']';
        ++at_;
        return Status();
      }
      if (c == '\\') {
        LK_RETURN_IF_ERROR(escape());
        continue;
      }
      // Python: a plain '['; PCRE2: may open a POSIX class.
      if (c == '[') out_ += '\\';
      out_ += c;
      ++at_;
    }
    return refuse(pattern_, "a '[' is not closed");
  }
  Status group() {
    if (peek(1) == '*') return refuse(pattern_, "nothing to repeat after '('");
    if (peek(1) == '?') {
      const char kind = peek(2);
      const bool look_behind = kind == '<' && (peek(3) == '=' || peek(3) == '!');
      const bool named = kind == 'P' && (peek(3) == '<' || peek(3) == '=');
      const bool flags = std::string_view("imsx-").find(kind) != std::string_view::npos;
      if (!look_behind && !named && !flags && std::string_view(":=!>#").find(kind) == std::string_view::npos) {
        return refuse(pattern_, fmt::format("the group (?{}...) is not supported", kind));
      }
    }
    out_ += '(';
    ++at_;
    return Status();
  }
  // Python reads x{,3} as x{0,3}; PCRE2 takes it literally.
  Status open_quantifier() {
    size_t end = at_ + 2;
    while (end < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[end]))) ++end;
    const bool quantifier = end < pattern_.size() && pattern_[end] == '}';
    out_ += quantifier ? "{0" : "{";
    ++at_;
    return Status();
  }

  const std::string& pattern_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

struct PythonRegex::Code {
  Owned<pcre2_code> code;
  Owned<pcre2_match_context> context;
};

Result<PythonRegex> PythonRegex::compile(const std::string& pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return invalid_argument("a regular expression of {} bytes is longer than {}", pattern.size(), kMaxPatternBytes);
  }
  LK_ASSIGN_OR_RETURN(const std::string translated, Translator(pattern).run());
  Owned<pcre2_compile_context> compile_context(pcre2_compile_context_create(nullptr));
  pcre2_set_parens_nest_limit(compile_context.get(), 50);
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  auto code = std::make_shared<Code>();
  code->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                 PCRE2_NEVER_BACKSLASH_C | PCRE2_NEVER_UTF | PCRE2_NEVER_UCP, &error, &error_offset,
                                 compile_context.get()));
  if (code->code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof message);
    return refuse(pattern, fmt::format("{} (at {})", reinterpret_cast<const char*>(message), error_offset));
  }
  code->context.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(code->context.get(), kMatchLimit);
  pcre2_set_depth_limit(code->context.get(), 10'000);
  pcre2_set_heap_limit(code->context.get(), 16 * 1024);  // KiB
  PythonRegex regex;
  regex.pattern_ = pattern;
  regex.code_ = std::move(code);
  return regex;
}

Result<bool> PythonRegex::run(std::string_view text, uint32_t options) const {
  Owned<pcre2_match_data> data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr));
  const int found = pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, options,
                                data.get(), code_->context.get());
  if (found == PCRE2_ERROR_NOMATCH) return false;
  if (found < 0) return refuse(pattern_, fmt::format("takes too long to match '{}'; simplify it", text));
  return true;
}

Result<bool> PythonRegex::match(std::string_view text) const { return run(text, PCRE2_ANCHORED); }

Result<bool> PythonRegex::full_match(std::string_view text) const {
  return run(text, PCRE2_ANCHORED | PCRE2_ENDANCHORED);
}

Result<std::optional<std::string>> PythonRegex::match_group(std::string_view text, const char* group) const {
  Owned<pcre2_match_data> data(pcre2_match_data_create_from_pattern(code_->code.get(), nullptr));
  const int found = pcre2_match(code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                                PCRE2_ANCHORED, data.get(), code_->context.get());
  if (found == PCRE2_ERROR_NOMATCH) return std::optional<std::string>();
  if (found < 0) return refuse(pattern_, fmt::format("takes too long to match '{}'; simplify it", text));
  PCRE2_UCHAR* value = nullptr;
  PCRE2_SIZE length = 0;
  if (pcre2_substring_get_byname(data.get(), reinterpret_cast<PCRE2_SPTR>(group), &value, &length) != 0) {
    return std::optional<std::string>();
  }
  std::optional<std::string> text_of_group(std::in_place, reinterpret_cast<const char*>(value), length);
  pcre2_substring_free(value);
  return text_of_group;
}

}  // namespace lk
