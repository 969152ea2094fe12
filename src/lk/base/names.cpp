// SPDX-License-Identifier: Apache-2.0
#include "lk/base/names.h"

#include "lk/base/ascii.h"
#include "lk/base/plain_text.h"

namespace lk {
namespace {

constexpr size_t kMaxName = 128;

bool is_name_char(char c) { return is_alnum(c) || c == '.' || c == '_' || c == '-'; }

}  // namespace

bool is_valid_name(std::string_view name) {
  if (name.empty() || name.size() > kMaxName || !is_alnum(name[0])) return false;
  for (const char c : name)
    if (!is_name_char(c)) return false;
  return true;
}

Status check_name(std::string_view what, std::string_view name) {
  if (is_valid_name(name)) return Status();
  return invalid_argument("{} \"{}\" is not a name: 1 to 128 of A-Z a-z 0-9 . _ -, a letter or digit first", what,
                          printable(name));
}

bool is_adapter_name(std::string_view name) {
  if (name.size() > kMaxName) return false;
  char before = '/';
  for (const char c : name) {
    const bool fits = before == '/' ? is_alnum(c) || c == '_' : is_name_char(c) || c == '+' || c == '/';
    if (!fits) return false;
    before = c;
  }
  return before != '/';
}

Status check_adapter_name(std::string_view what, std::string_view name) {
  if (is_adapter_name(name)) return Status();
  return invalid_argument(
      "{} \"{}\" is not a name: 1 to 128 of A-Z a-z 0-9 . _ - +, with single slashes between parts, a letter, digit or "
      "_ "
      "at the front of each",
      what, printable(name));
}

bool is_valid_glob(std::string_view pattern) {
  if (pattern.empty() || pattern.size() > kMaxName) return false;
  for (const char c : pattern)
    if (!is_name_char(c) && c != '+' && c != '/' && c != '*' && c != '?') return false;
  return true;
}

bool glob_match(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0;
  size_t star = std::string_view::npos,
         star_text = 0;  // the last '*' seen and where its run ends; only it needs retrying
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t])) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace lk
