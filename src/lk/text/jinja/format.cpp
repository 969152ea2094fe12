// SPDX-License-Identifier: Apache-2.0
#include "lk/text/jinja/format.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "lk/base/utf8.h"
#include "lk/text/jinja/ops.h"
#include "lk/text/jinja/text.h"

namespace lk::jinja {
namespace {

constexpr int64_t kMaxPrecision = 1000;  // digits; more only costs time

// One conversion: [[fill]align][sign][#][0][width][,][.precision][type], or its % equivalent.
struct Spec {
  std::string fill = " ";
  char align = 0;  // < > ^ =, 0: the default of the type
  char sign = '-';
  bool alternate = false;
  char grouping = 0;
  int64_t width = 0;
  std::optional<int64_t> precision;
  char type = 0;
};

int64_t parse_count(std::string_view text, size_t& pos) {
  int64_t count = 0;
  while (pos < text.size() && text[pos] >= '0' && text[pos] <= '9') {
    count = count * 10 + (text[pos++] - '0');
    if (count > (int64_t{1} << 31)) fail("a width or precision in a format is too large");
  }
  return count;
}

std::string number_digits(double x, char type, int64_t precision, bool alternate) {
  const std::string text = alternate ? std::string("%#.*") + type : std::string("%.*") + type;
  const int digits = static_cast<int>(precision);
  const int size = std::snprintf(nullptr, 0, text.c_str(), digits, x);
  std::string out(static_cast<size_t>(size) + 1, '\0');
  std::snprintf(out.data(), out.size(), text.c_str(), digits, x);
  out.pop_back();
  return out;
}

void group_digits(std::string& digits, char separator) {
  size_t end = 0;
  while (end < digits.size() && digits[end] >= '0' && digits[end] <= '9') ++end;
  for (size_t at = end; at > 3; at -= 3) digits.insert(at - 3, 1, separator);
}

std::string integer_digits(uint64_t magnitude, int base, bool upper_case) {
  const char* digits = upper_case ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string out;
  do {
    out += digits[magnitude % static_cast<uint64_t>(base)];
    magnitude /= static_cast<uint64_t>(base);
  } while (magnitude != 0);
  std::reverse(out.begin(), out.end());
  return out;
}

// sign, prefix and digits padded to the width. Zero padding goes between prefix and digits.
void append_padded(StringBuilder& out, const Spec& spec, char default_align, std::string_view sign,
                   std::string_view body) {
  const int64_t missing = spec.width - num_code_points(sign) - num_code_points(body);
  const char align = spec.align != 0 ? spec.align : default_align;
  const int64_t left = align == '>' ? missing : align == '^' ? missing / 2 : 0;
  const int64_t right = align == '<' ? missing : align == '^' ? missing - missing / 2 : 0;
  out.append_fill(left, spec.fill);
  out.append(sign);
  if (align == '=') out.append_fill(missing, spec.fill);
  out.append(body);
  out.append_fill(right, spec.fill);
}

std::string sign_text(bool negative, char sign) { return negative ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : ""; }

void append_integer(StringBuilder& out, const Spec& spec, int64_t x, bool printf) {
  const uint64_t magnitude = x < 0 ? uint64_t{0} - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
  const int base = spec.type == 'x' || spec.type == 'X' ? 16 : spec.type == 'o' ? 8 : spec.type == 'b' ? 2 : 10;
  std::string digits = integer_digits(magnitude, base, spec.type == 'X');
  if (printf && spec.precision.value_or(0) > static_cast<int64_t>(digits.size())) {
    if (*spec.precision > kMaxPrecision) fail("a precision in a format is larger than {}", kMaxPrecision);
    digits.insert(0, static_cast<size_t>(*spec.precision) - digits.size(), '0');
  }
  if (spec.grouping != 0) {
    if (base != 10) fail_unsupported("digit grouping of base {} numbers is not supported", base);
    group_digits(digits, spec.grouping);
  }
  std::string sign = sign_text(x < 0, spec.sign);
  if (spec.alternate && base != 10) sign += std::string("0") + spec.type;
  append_padded(out, spec, '>', sign, digits);
}

void append_float(StringBuilder& out, const Spec& spec, double x) {
  if (spec.precision.value_or(0) > kMaxPrecision) fail("a precision in a format is larger than {}", kMaxPrecision);
  const bool negative = std::signbit(x) && !std::isnan(x);
  const double magnitude = std::fabs(x);
  std::string digits;
  if (spec.type == 0 && !spec.precision.has_value()) {
    digits = float_repr(magnitude);
  } else if (spec.type == '%') {
    digits = number_digits(magnitude * 100, 'f', spec.precision.value_or(6), spec.alternate) + "%";
  } else if (spec.type == 0 || spec.type == 'n') {
    fail_unsupported("a float format with a precision needs a type: f, e, g or %");
  } else {
    digits = number_digits(magnitude, spec.type, spec.precision.value_or(6), spec.alternate);
  }
  if (spec.grouping != 0) group_digits(digits, spec.grouping);
  append_padded(out, spec, '>', sign_text(negative, spec.sign), digits);
}

void append_text(StringBuilder& out, const Spec& spec, std::string_view text) {
  if (spec.precision.has_value()) text = text.substr(0, byte_offset(text, *spec.precision));
  append_padded(out, spec, '<', "", text);
}

bool is_one_of(char c, std::string_view set) { return c != 0 && set.find(c) != std::string_view::npos; }

// ---- "%s" % x

class PrintfFormatter {
 public:
  PrintfFormatter(Runtime& runtime, std::string_view format, const Value& arguments)
      : runtime_(runtime), format_(format), arguments_(arguments), out_(runtime) {}

  Value run() {
    while (pos_ < format_.size()) {
      const size_t percent = format_.find('%', pos_);
      if (percent == std::string_view::npos) {
        out_.append(format_.substr(pos_));
        break;
      }
      out_.append(format_.substr(pos_, percent - pos_));
      pos_ = percent + 1;
      conversion();
    }
    const bool is_tuple = arguments_.is_sequence(SequenceKind::kTuple);
    const size_t given = is_tuple ? arguments_.items().size() : 1;
    // A mapping may stay unused; undefined counts as one, for it has __getitem__.
    if (!named_ && next_ < given && !arguments_.is_undefined() &&
        !(arguments_.is_dict() || (arguments_.is_sequence() && !is_tuple))) {
      fail("not all arguments were used by the format string");
    }
    return out_.take();
  }

 private:
  char peek() const { return pos_ < format_.size() ? format_[pos_] : '\0'; }

  Value next_argument() {
    if (named_) fail("a format mixes named and positional arguments");
    const bool is_tuple = arguments_.is_sequence(SequenceKind::kTuple);
    if (next_ >= (is_tuple ? arguments_.items().size() : 1)) fail("not enough arguments for the format string");
    return is_tuple ? arguments_.items()[next_++] : (++next_, arguments_);
  }

  int64_t star_or_count() {
    if (peek() != '*') return parse_count(format_, pos_);
    ++pos_;
    const Value width = next_argument();
    if (!width.is_integral()) fail("* in a format needs an integer");
    return width.integer();
  }

  void conversion() {
    runtime_.step();
    Value argument;
    bool has_argument = false;
    if (peek() == '(') {
      const size_t close = format_.find(')', pos_);
      if (close == std::string_view::npos) fail("incomplete format key");
      if (!arguments_.is_dict()) fail("a format with names needs a mapping");
      const Value* found = arguments_.dict().find(format_.substr(pos_ + 1, close - pos_ - 1));
      if (found == nullptr) fail("the format names a key that is not given");
      argument = *found;
      has_argument = named_ = true;
      pos_ = close + 1;
    }
    Spec spec;
    bool left = false;
    bool zero = false;
    for (; is_one_of(peek(), "-+ #0"); ++pos_) {
      left |= peek() == '-';
      zero |= peek() == '0';
      spec.alternate |= peek() == '#';
      if (peek() == '+' || (peek() == ' ' && spec.sign != '+')) spec.sign = peek();
    }
    spec.width = star_or_count();
    if (spec.width < 0) {
      left = true;
      spec.width = -std::max<int64_t>(spec.width, -INT64_MAX);
    }
    if (peek() == '.') {
      ++pos_;
      spec.precision = std::max<int64_t>(star_or_count(), 0);
    }
    while (is_one_of(peek(), "hlL")) ++pos_;
    if (pos_ >= format_.size()) fail("incomplete format");
    spec.type = format_[pos_++];
    if (spec.type == '%') {
      out_.append("%");
      return;
    }
    if (!has_argument) argument = next_argument();
    spec.align = left ? '<' : '>';
    append(spec, argument, zero && !left);
  }

  void append(Spec& spec, const Value& argument, bool zero) {
    const auto zero_pad = [&] {
      if (!zero) return;
      spec.fill = "0";
      spec.align = '=';
    };
    if (spec.type == 's' || spec.type == 'r' || spec.type == 'a') {
      if (spec.type == 'a') fail_unsupported("%a is not supported in a format; use %r");
      std::string text;
      spec.type == 's' ? append_str(text, argument, runtime_.max_string_bytes())
                       : append_repr(text, argument, runtime_.max_string_bytes());
      append_text(out_, spec, text);
    } else if (is_one_of(spec.type, "diuxXo")) {
      zero_pad();
      if (argument.is<double>() && is_one_of(spec.type, "diu")) {
        const double x = std::trunc(argument.as<double>());
        if (!(x >= -0x1p63 && x < 0x1p63)) fail("%d cannot show this float");
        append_integer(out_, spec, static_cast<int64_t>(x), true);
      } else {
        if (!argument.is_integral()) fail("%{} needs a number, got {}", spec.type, type_name(argument));
        append_integer(out_, spec, argument.integer(), true);
      }
    } else if (is_one_of(spec.type, "eEfFgG")) {
      if (!argument.is_number()) fail("%{} needs a number, got {}", spec.type, type_name(argument));
      if (std::isfinite(argument.number())) zero_pad();
      append_float(out_, spec, argument.number());
    } else if (spec.type == 'c') {
      std::string text;
      if (argument.is_integral()) {
        const int64_t code = argument.integer();
        if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("%c needs a character code");
        utf8::append(text, static_cast<char32_t>(code));
      } else if (argument.is_string() && num_code_points(argument.text()) == 1) {
        text = argument.text();
      } else {
        fail("%c needs a character");
      }
      append_text(out_, spec, text);
    } else {
      fail("unsupported format character '{}'", spec.type);
    }
  }

  Runtime& runtime_;
  std::string_view format_;
  const Value& arguments_;
  StringBuilder out_;
  size_t pos_ = 0;
  size_t next_ = 0;
  bool named_ = false;
};

// ---- "{}".format(x)

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t pos = 0;
  if (!text.empty()) {
    const size_t second = byte_offset(text, 1);
    if (second < text.size() && is_one_of(text[second], "<>^=")) {
      spec.fill = std::string(text.substr(0, second));
      spec.align = text[second];
      pos = second + 1;
    } else if (is_one_of(text[0], "<>^=")) {
      spec.align = text[0];
      pos = 1;
    }
  }
  const auto peek = [&] { return pos < text.size() ? text[pos] : '\0'; };
  if (is_one_of(peek(), "+- ")) spec.sign = text[pos++];
  if (peek() == '#') spec.alternate = (++pos, true);
  if (peek() == '0') {
    ++pos;
    if (spec.align == 0) {
      spec.fill = "0";
      spec.align = '=';
    }
  }
  spec.width = parse_count(text, pos);
  if (is_one_of(peek(), ",_")) spec.grouping = text[pos++];
  if (peek() == '.') {
    const size_t digits = ++pos;
    spec.precision = parse_count(text, pos);
    if (pos == digits) fail("format specifier missing precision");
  }
  if (pos < text.size()) spec.type = text[pos++];
  if (pos != text.size()) fail("invalid format specifier");
  return spec;
}

void append_formatted(StringBuilder& out, const Value& value, std::string_view text) {
  if (text.empty()) {
    out.append_value(value);
    return;
  }
  Spec spec = parse_spec(text);
  if (spec.grouping != 0 && spec.fill == "0" && spec.align == '=') {
    fail_unsupported("zero padding with digit grouping is not supported in formats");
  }
  if (value.is_string() || value.is_undefined()) {
    if (value.is_undefined()) fail("an undefined value cannot be formatted with a specifier");
    if (spec.type != 0 && spec.type != 's') fail("unknown format code '{}' for str", spec.type);
    if (spec.align == '=') {
      if (spec.fill != "0") fail("'=' alignment is not allowed for str");
      spec.align = '<';
    }
    if (spec.sign != '-' || spec.alternate || spec.grouping != 0) fail("this format is not allowed for str");
    append_text(out, spec, value.text());
  } else if (value.is_integral() && !(spec.type != 0 && is_one_of(spec.type, "eEfFgG%"))) {
    if (value.is<bool>() && spec.type == 0) fail_unsupported("a bool with a format specifier is not supported");
    if (spec.type == 'c' || spec.type == 'n') fail_unsupported("the format code '{}' is not supported", spec.type);
    if (spec.type != 0 && !is_one_of(spec.type, "dxXob")) fail("unknown format code '{}' for int", spec.type);
    if (spec.precision.has_value()) fail("precision not allowed in an integer format");
    append_integer(out, spec, value.integer(), false);
  } else if (value.is_number()) {
    if (spec.type != 0 && !is_one_of(spec.type, "eEfFgG%")) fail("unknown format code '{}' for float", spec.type);
    append_float(out, spec, value.number());
  } else {
    fail("{} cannot be formatted with a specifier", type_name(value));
  }
}

class StrFormatter {
 public:
  StrFormatter(Runtime& runtime, const Arguments& arguments) : runtime_(runtime), arguments_(arguments) {}

  Value run(std::string_view format) {
    StringBuilder out(runtime_);
    expand(out, format, 0);
    return out.take();
  }

 private:
  void expand(StringBuilder& out, std::string_view format, int nesting) {
    if (nesting > 1) fail("max string recursion exceeded in a format");
    for (size_t pos = 0; pos < format.size();) {
      const char c = format[pos];
      if (c != '{' && c != '}') {
        const size_t end = std::min(format.find_first_of("{}", pos), format.size());
        out.append(format.substr(pos, end - pos));
        pos = end;
      } else if (pos + 1 < format.size() && format[pos + 1] == c && nesting == 0) {
        out.append(format.substr(pos, 1));
        pos += 2;
      } else if (c == '}') {
        fail("single '}}' in a format");
      } else {
        const size_t end = field_end(format, pos + 1);
        field(out, format.substr(pos + 1, end - pos - 1), nesting);
        pos = end + 1;
      }
    }
  }

  static size_t field_end(std::string_view format, size_t pos) {
    int open = 1;
    for (; pos < format.size(); ++pos) {
      if (format[pos] == '{') ++open;
      if (format[pos] == '}' && --open == 0) return pos;
    }
    fail("a '{{' in a format is not closed");
  }

  void field(StringBuilder& out, std::string_view text, int nesting) {
    runtime_.step();
    const size_t name_end = std::min(text.find_first_of("!:"), text.size());
    Value value = lookup(text.substr(0, name_end));
    std::string_view rest = text.substr(name_end);
    if (!rest.empty() && rest[0] == '!') {
      if (rest.size() < 2 || (rest.size() > 2 && rest[2] != ':')) fail("invalid conversion in a format");
      std::string shown;
      if (rest[1] == 'r') {
        append_repr(shown, value, runtime_.max_string_bytes());
      } else if (rest[1] == 's') {
        append_str(shown, value, runtime_.max_string_bytes());
      } else {
        fail("unknown conversion '!{}' in a format", rest[1]);
      }
      value = runtime_.string(std::move(shown));
      rest = rest.substr(2);
    }
    StringBuilder spec(runtime_);
    if (!rest.empty()) expand(spec, rest.substr(1), nesting + 1);
    append_formatted(out, value, spec.take_text());
  }

  // name, or index, then .attribute and [item] parts.
  Value lookup(std::string_view path) {
    const size_t first_end = std::min(path.find_first_of(".["), path.size());
    const std::string_view first = path.substr(0, first_end);
    const auto all_digits = [](std::string_view text) {
      return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
    };
    Value value;
    if (first.empty() || all_digits(first)) {
      size_t pos = 0;
      const bool automatic = first.empty();
      if (numbering_.value_or(automatic) != automatic) fail("a format mixes automatic and explicit numbering");
      numbering_ = automatic;
      const int64_t index = automatic ? next_++ : parse_count(first, pos);
      if (static_cast<size_t>(index) >= arguments_.positional.size()) fail("a format names argument {}", index);
      value = arguments_.positional[static_cast<size_t>(index)];
    } else {
      const auto it = std::find_if(arguments_.named.begin(), arguments_.named.end(),
                                   [&](const auto& entry) { return entry.first == first; });
      if (it == arguments_.named.end()) fail("a format names the argument {}, which is not given", first);
      value = it->second;
    }
    for (size_t pos = first_end; pos < path.size();) {
      if (path[pos] == '.') {
        const size_t end = std::min(path.find_first_of(".[", pos + 1), path.size());
        if (end == pos + 1) fail("empty attribute in a format");
        value = get_attribute(runtime_, value, path.substr(pos + 1, end - pos - 1));
        pos = end;
      } else if (path[pos] == '[') {
        const size_t end = path.find(']', pos);
        if (end == std::string_view::npos || end == pos + 1) fail("bad [] in a format");
        const std::string_view key = path.substr(pos + 1, end - pos - 1);
        size_t at = 0;
        value = get_item(runtime_, value, all_digits(key) ? integer(parse_count(key, at)) : runtime_.string(key));
        pos = end + 1;
      } else {
        fail("only '.' or '[' may follow ']' in a format");
      }
    }
    return value;
  }

  Runtime& runtime_;
  const Arguments& arguments_;
  std::optional<bool> numbering_;  // true: automatic
  int64_t next_ = 0;
};

}  // namespace

Value printf_format(Runtime& runtime, std::string_view format, const Value& arguments) {
  return PrintfFormatter(runtime, format, arguments).run();
}

Value str_format(Runtime& runtime, std::string_view format, const Arguments& arguments) {
  return StrFormatter(runtime, arguments).run(format);
}

}  // namespace lk::jinja
