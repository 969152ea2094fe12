// SPDX-License-Identifier: Apache-2.0
// Unicode text as Python's str sees it, on UTF-8: positions are code points, white space and case
// follow the Unicode tables. Every function requires valid UTF-8 (base/utf8.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lk::jinja {

bool is_ascii(std::string_view text);
// The code point at byte `pos`, which moves past it. Requires: pos < text.size().
char32_t next_code_point(std::string_view text, size_t& pos);

int64_t num_code_points(std::string_view text);
// Byte offset of code point `index`; text.size() past the end.
size_t byte_offset(std::string_view text, int64_t index);

bool is_space(char32_t c);       // str.isspace
bool is_line_break(char32_t c);  // a boundary of str.splitlines
bool is_printable(char32_t c);   // str.isprintable

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
std::string title(std::string_view text);  // str.title: every run of cased letters
bool is_upper(std::string_view text);
bool is_lower(std::string_view text);

// Strips white space, or the code points of `chars` when has_chars.
std::string_view strip(std::string_view text, bool left, bool right, bool has_chars = false,
                       std::string_view chars = {});
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

}  // namespace lk::jinja
