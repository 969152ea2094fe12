// SPDX-License-Identifier: Apache-2.0
#include "lk/grammar/json_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>

#include "lk/base/check.h"
#include "lk/base/json_text.h"
#include "lk/base/utf8.h"
#include "lk/text/unicode.h"

namespace lk::grammar {
namespace {

struct ShortEscape {
  uint32_t code;
  char letter;
};
constexpr ShortEscape kShortEscapes[] = {{'"', '"'},  {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'},
                                         {'\n', 'n'}, {'\r', 'r'},  {'\t', 't'}};

ByteSet one_of(std::string_view bytes) {
  ByteSet set;
  for (const char c : bytes) set.set(static_cast<uint8_t>(c));
  return set;
}

std::string spell_escape(uint32_t code) {
  for (const ShortEscape& escape : kShortEscapes) {
    if (escape.code == code) return fmt::format("\\{}", escape.letter);
  }
  return fmt::format("\\u{:04x}", code);
}

const CodePoints& escaped() {
  static const CodePoints set{{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  return set;
}

}  // namespace

std::string quote_json(std::string_view text) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size(); at += utf8::char_length(text[at])) {
    const uint32_t code = utf8::decode(text, at);
    if (escaped().contains(code)) {
      out += spell_escape(code);
    } else {
      out += text.substr(at, utf8::char_length(text[at]));
    }
  }
  return out + "\"";
}

Expr JsonRules::call(std::optional<RuleId>& rule, const char* name) {
  if (!rule.has_value()) {
    rule = ir_.add_rule(name, true);  // known before it is defined: a value contains values
    const CodePoints blank{{' ', ' '}}, tab{{'\t', '\t'}};
    constexpr int kMaxIndentation = 32, kMaxTabs = 8;
    if (&rule == &space_) {
      const Expr indentation = ir_.alt(
          {ir_.repeat(ir_.code_points(blank), 0, kMaxIndentation), ir_.repeat(ir_.code_points(tab), 1, kMaxTabs)});
      ir_.define(*rule, ir_.alt({ir_.empty(), ir_.literal(" "), ir_.seq({ir_.literal("\n"), indentation})}));
    } else if (&rule == &string_) {
      ir_.define(*rule, define_string());
    } else if (&rule == &value_) {
      ir_.define(*rule, define_value());
    } else {
      ir_.define(*rule, define_number(&rule == &integer_));
    }
  }
  return ir_.call(*rule);
}

// Any spelling. Escaped surrogates come in pairs only: half of one is no character.
Expr JsonRules::define_string() {
  const Expr hex = ir_.bytes(one_of("0123456789abcdefABCDEF"));
  const Expr d = ir_.bytes(one_of("dD"));
  const Expr low = ir_.seq({ir_.literal("\\u"), d, ir_.bytes(one_of("cdefCDEF")), hex, hex});
  const Expr code_unit = ir_.alt({ir_.seq({ir_.bytes(one_of("0123456789abcefABCEF")), hex, hex, hex}),
                                  ir_.seq({d, ir_.bytes(one_of("01234567")), hex, hex}),
                                  ir_.seq({d, ir_.bytes(one_of("89abAB")), hex, hex, low})});
  const Expr escape =
      ir_.seq({ir_.literal("\\"), ir_.alt({ir_.bytes(one_of("\"\\/bfnrt")), ir_.seq({ir_.literal("u"), code_unit})})});
  return string_of(ir_.repeat(ir_.alt({ir_.code_points(escaped().inverted()), escape}), 0, kUnbounded));
}

Expr JsonRules::define_number(bool integer) {
  constexpr int kMaxDigits = 18, kMaxExponentDigits = 2;
  const Expr digit = ir_.bytes(one_of("0123456789"));
  const Expr whole = ir_.seq(
      {ir_.optional(ir_.literal("-")),
       ir_.alt({ir_.literal("0"), ir_.seq({ir_.bytes(one_of("123456789")), ir_.repeat(digit, 0, kMaxDigits - 1)})})});
  if (integer) return whole;
  const Expr fraction = ir_.seq({ir_.literal("."), ir_.repeat(digit, 1, kMaxDigits)});
  const Expr exponent = ir_.seq(
      {ir_.bytes(one_of("eE")), ir_.optional(ir_.bytes(one_of("+-"))), ir_.repeat(digit, 1, kMaxExponentDigits)});
  return ir_.seq({whole, ir_.optional(fraction), ir_.optional(exponent)});
}

Expr JsonRules::define_value() {
  return ir_.alt({string(), number(), boolean(), null(), any_object(), array({}, value(), 0, kUnbounded)});
}

Expr JsonRules::spell(const CodePoints& set) {
  const auto [at, added] = spellings_.try_emplace(set.ranges, ir_.never());
  if (!added) return at->second;
  ByteSet letters, digits[2];  // of \n and its kin; last digits of \u000x and \u001x
  for (const auto& [first, last] : set.both(escaped()).ranges) {
    for (uint32_t code = first; code <= last; ++code) {
      const std::string spelling = spell_escape(code);
      (spelling.size() == 2 ? letters : digits[code >> 4]).set(static_cast<uint8_t>(spelling.back()));
    }
  }
  const Expr escape = ir_.alt({ir_.bytes(letters), ir_.seq({ir_.literal("u000"), ir_.bytes(digits[0])}),
                               ir_.seq({ir_.literal("u001"), ir_.bytes(digits[1])})});
  return at->second = ir_.alt({ir_.code_points(set.minus(escaped())), ir_.seq({ir_.literal("\\"), escape})});
}

Expr JsonRules::string_between(int64_t min, int64_t max, bool in_calls) {
  constexpr int kBlock = 256;
  const Expr character = spell(CodePoints::all()), quote = ir_.literal("\"");
  const auto times = [&](Expr part, int64_t least, int64_t most) {
    return ir_.repeat(part, static_cast<int>(least), static_cast<int>(most));
  };
  if (!in_calls || std::max(min, max) <= 4 * kBlock) return string_of(times(character, min, max));
  if (!block_) {
    block_ = ir_.add_rule("characters", true);
    ir_.define(*block_, times(character, kBlock, kBlock));
    last_block_ = ir_.add_rule("last characters", true);
    ir_.define(*last_block_, ir_.seq({times(character, 0, kBlock - 1), quote}));
  }
  const Expr block = ir_.call(*block_);
  std::vector<Expr> parts{quote, times(block, min / kBlock, min / kBlock),
                          times(character, min % kBlock, min % kBlock)};
  if (max == kUnbounded) {
    parts.push_back(times(character, 0, kUnbounded));
    parts.push_back(quote);
    return ir_.seq(std::move(parts));
  }
  // Fewer than all further blocks and any rest, or all of them and what is left then.
  const int64_t blocks = (max - min) / kBlock, rest = (max - min) % kBlock;
  const Expr all = ir_.seq({times(block, blocks, blocks), times(character, 0, rest), quote});
  parts.push_back(blocks == 0 ? all : ir_.alt({ir_.seq({times(block, 0, blocks - 1), ir_.call(*last_block_)}), all}));
  return ir_.seq(std::move(parts));
}

Expr JsonRules::constant(const boost::json::value& value) {
  if (const auto* text = value.if_string()) return ir_.literal(quote_json({text->data(), text->size()}));
  if (const auto* number = value.if_double()) return ir_.literal(fmt::format("{}", *number));
  if (const auto* list = value.if_array()) {
    std::vector<Expr> items;
    for (const auto& item : *list) items.push_back(constant(item));
    const auto count = static_cast<int64_t>(items.size());
    return array(items, ir_.never(), count, count);
  }
  if (const auto* object_value = value.if_object()) {
    std::vector<Property> properties;
    for (const auto& [key, item] : *object_value) properties.push_back({std::string(key), constant(item), true});
    return object(properties, ir_.never());
  }
  return ir_.literal(json_text(value));
}

Expr JsonRules::object(const std::vector<Property>& properties, Expr additional, std::optional<Expr> names) {
  const auto count = static_cast<uint32_t>(properties.size());
  // Two rows of states: none[i], no property written and the first i decided; some[i], at least one written. entry[i]
  // begins one.
  const auto none = [&](uint32_t i) { return i; };
  const auto some = [&](uint32_t i) { return count + 1 + i; };
  const auto entry = [&](uint32_t i) { return 2 * (count + 1) + i; };
  const uint32_t end = entry(count) + 1;
  std::vector<ExprNode::Edge> edges;
  std::vector<Expr> keys;
  for (uint32_t i = 0; i < count; ++i) {
    const Property& property = properties[i];
    keys.push_back(ir_.literal(quote_json(property.key)));
    edges.push_back({none(i), entry(i), ir_.empty()});
    edges.push_back({some(i), entry(i), comma()});
    const Expr key = names ? ir_.both(keys.back(), *names) : keys.back();
    edges.push_back({entry(i), some(i + 1), pair(key, property.value)});
    if (property.required) continue;
    edges.push_back({none(i), none(i + 1), ir_.empty()});
    edges.push_back({some(i), some(i + 1), ir_.empty()});
  }
  if (additional != ir_.never()) {
    const Expr any_key = names ? *names : string_of(ir_.repeat(spell(CodePoints::all()), 0, kUnbounded));
    const Expr key = !keys.empty() ? ir_.difference(any_key, ir_.alt(std::move(keys))) : names ? *names : string();
    edges.push_back({none(count), entry(count), ir_.empty()});
    edges.push_back({some(count), entry(count), comma()});
    edges.push_back({entry(count), some(count), pair(key, additional)});
  }
  edges.push_back({none(count), end, ir_.empty()});
  edges.push_back({some(count), end, space()});
  return ir_.seq({ir_.literal("{"), space(), ir_.graph(static_cast<int>(end) + 1, std::move(edges)), ir_.literal("}")});
}

Expr JsonRules::array(const std::vector<Expr>& prefix, Expr items, int64_t min, int64_t max) {
  const auto listed = static_cast<int64_t>(prefix.size());
  if (items == ir_.never() && (max == kUnbounded || max > listed)) max = listed;
  if (max != kUnbounded && min > max) return ir_.never();
  // States 0..written: that many elements are written. With no maximum, the last state repeats.
  const int64_t written = max != kUnbounded ? max : std::max(min, listed);
  const auto loop = static_cast<uint32_t>(written + 1), end = static_cast<uint32_t>(written + 2);
  constexpr int64_t kFewCopies = 4;
  if (written > listed && max != 1) items = reuse(items, written - listed > kFewCopies);
  const Expr separator = comma(), next_item = ir_.seq({separator, items});
  std::vector<ExprNode::Edge> edges;
  for (int64_t k = 0; k <= written; ++k) {
    const auto state = static_cast<uint32_t>(k);
    if (k >= min) edges.push_back({state, end, k == 0 ? ir_.empty() : space()});
    if (k == written) break;
    const bool in_prefix = k < listed;
    const Expr item = in_prefix ? prefix[static_cast<size_t>(k)] : items;
    edges.push_back({state, state + 1, k == 0 ? item : in_prefix ? ir_.seq({separator, item}) : next_item});
  }
  if (max == kUnbounded) {
    const uint32_t after = end + 1;  // behind a repeated element
    edges.push_back({static_cast<uint32_t>(written), loop, written == 0 ? ir_.empty() : separator});
    edges.push_back({loop, after, items});
    edges.push_back({after, loop, separator});
    edges.push_back({after, end, space()});
    edges.push_back({end, end + 2, ir_.empty()});
  }
  const uint32_t last = max == kUnbounded ? end + 2 : end;
  return ir_.seq(
      {ir_.literal("["), space(), ir_.graph(static_cast<int>(last) + 1, std::move(edges)), ir_.literal("]")});
}

Expr JsonRules::reuse(Expr expr, bool often) {
  if (ir_.node(expr).kind == ExprNode::Kind::kRule || expr == ir_.never()) return expr;
  const RuleId rule = ir_.add_rule("part", often);
  ir_.define(rule, expr);
  return ir_.call(rule);
}

}  // namespace lk::grammar
