// SPDX-License-Identifier: Apache-2.0
// The language, construct by construct; expected values are those of jinja2 3.1.6 under
// CPython 3.11.
#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>

#include "lk/text/chat_template.h"

namespace lk {
namespace {

std::string render(std::string_view source) {
  static const auto kVariables =
      boost::json::parse(R"({"s": "a,b,c", "u": "Straße", "l": [3, 1, 2], "d": {"k": 1, "j": [null, true]}})")
          .as_object();
  const auto parsed = ChatTemplate::parse(source, "t");
  if (!parsed.ok()) return "parse error: " + parsed.status().message();
  const auto rendered = (*parsed)->render(kVariables);
  return rendered.ok() ? *rendered : "error: " + rendered.status().message();
}

struct Case {
  std::string_view source, expected;
};

class Jinja : public testing::TestWithParam<Case> {};

TEST_P(Jinja, RendersAsJinja2) { EXPECT_EQ(render(GetParam().source), GetParam().expected) << GetParam().source; }

INSTANTIATE_TEST_SUITE_P(
    Whitespace, Jinja,
    testing::Values(Case{"a\n{% if 1 %}\nb\n{% endif %}\nc\n", "a\nb\nc"}, Case{"  {% set x = 1 %}  \n x", "  \n x"},
                    Case{"a \n {%- if 1 -%} \n b {%- endif %}", "ab"}, Case{"  {%+ if 1 %}x{% endif +%}\ny", "  x\ny"},
                    Case{"{{ 1 }}\n{# c #}\n{{ 2 }}", "1\n2"}, Case{"{{-1}}|{{ -1 }}", "1|-1"},
                    Case{"{% raw %}{{ x }}{% endraw %}", "{{ x }}"}, Case{"a\r\nb\rc\n\n", "a\nb\nc\n"}));

INSTANTIATE_TEST_SUITE_P(
    Values, Jinja,
    testing::Values(
        Case{"{{ [1, 1.0, 'a\\'b', none, true, {'k': (1,)}] }}", "[1, 1.0, \"a'b\", None, True, {'k': (1,)}]"},
        Case{"{{ 1e16 }} {{ 1e15 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1/3 }}",
             "1e+16 1000000000000000.0 0.0001 1e-05 0.3333333333333333"},
        Case{"{{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }}", "-4 2 3.5 1024 0.5 4"},
        Case{"{{ '' % x }}{{ '%s' % x }}", ""},
        Case{"{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ not 1 in [2] }} {{ 'a' 'b' }}", "True False True ab"},
        Case{"{{ 1 ~ 2 + 3 }} {{ 5 - 2 - 1 }} {{ 'a' if 0 }}|{{ x }}",
             "error: t: line 1: cannot apply + to str and int"},
        Case{"{{ 'a' if 0 }}|{{ x }}|{{ x is defined }}", "||False"},
        Case{"{{ l[::-1] }}{{ u[-2:] }}{{ s[1:4:2] }}", "[2, 1, 3]ße,,"},
        Case{"{{ d.k }}{{ d['j'][0] }}{{ d.zz is undefined }}{{ l.0 }}", "1NoneTrue3"},
        Case{"{{ '\\u00e9\\x41\\n\\q' }}", "éA\n\\q"},
        Case{"{{ '%05.1f|%-4s|%r' % (2.25, 'x', 'y') }}", "002.2|x   |'y'"},
        Case{"{{ '{:>5}|{0.k}'.format(1, 2) }}", "error: t: line 1: a format mixes automatic and explicit numbering"},
        Case{"{{ '{:>5}|{a[k]!r}'.format('x', a=d) }}", "    x|1"}));

INSTANTIATE_TEST_SUITE_P(
    Statements, Jinja,
    testing::Values(Case{"{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }}{{ loop.last }} {% endfor %}",
                         "12False 34True "},
                    Case{"{% for x in l if x > 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% else %}none{% "
                         "endfor %}",
                         "1/2:3 2/2:2 "},
                    Case{"{% for x in [] %}a{% else %}b{% endfor %}", "b"},
                    Case{"{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "32"},
                    Case{"{% set x = 1 %}{% for i in l %}{% set x = i %}{% endfor %}{{ x }}", "1"},
                    Case{"{% set n = namespace(c=0) %}{% for i in l %}{% set n.c = n.c + i %}{% endfor %}{{ "
                         "n.c }}",
                         "6"},
                    Case{"{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}", "2"},
                    Case{"{% macro m(a, b='z') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, "
                         "2, 3, q=4) }}{{ m() }}",
                         "12(3,){'q': 4}z(){}"},
                    Case{"{% macro m() %}<{{ caller(2) }}>{% endmacro %}{% call(x) m() %}{{ x }}{% endcall %}", "<2>"},
                    Case{"{% set x | upper %}a{{ s }}{% endset %}{{ x }}", "AA,B,C"},
                    Case{"{% with a = 1 %}{{ a }}{% endwith %}{{ a }}", "1"},
                    Case{"{% generation %}{{ s }}{% endgeneration %}", "a,b,c"},
                    Case{"{% set l.x = 1 %}", "error: t: line 1: cannot set l.x: l is not a namespace()"},
                    Case{"{{ l.append(4) }}", "error: t: line 1: a list has no attribute 'append'"}));

INSTANTIATE_TEST_SUITE_P(
    Filters, Jinja,
    testing::Values(Case{"{{ d | tojson }} {{ 'é\"' | tojson }} {{ 'é' | tojson(ensure_ascii=true) }}",
                         "{\"k\": 1, \"j\": [null, true]} \"é\\\"\" \"\\u00e9\""},
                    Case{"{{ d | tojson(indent=1) }}", "{\n \"k\": 1,\n \"j\": [\n  null,\n  true\n ]\n}"},
                    Case{"{{ u | upper }} {{ u | length }} {{ 'hello wORLD-x' | title }}", "STRASSE 6 Hello World-X"},
                    Case{"{{ l | sort | join('-') }} {{ l | max }} {{ l | sum }} {{ l | map('string') | list }}",
                         "1-2-3 3 6 ['3', '1', '2']"},
                    Case{"{% if [] | select %}generators are true{% endif %}", "generators are true"},
                    Case{"{{ ' x ' | trim }}{{ none | default('n', true) }}{{ q | d('z') }}", "xnz"},
                    Case{"{{ 2.5 | round }} {{ 3.14159 | round(2) }} {{ '7.9' | int }} {{ 'x' | float }}",
                         "2.0 3.14 7 0.0"},
                    Case{"{{ 'a\nb\n\nc' | indent(2) }}", "a\n  b\n\n  c"},
                    Case{"{{ [{'a': {'b': 2}}, {'a': {'b': 1}}] | map(attribute='a.b') | list }}", "[2, 1]"},
                    Case{"{{ 'a b'.split() }}{{ 'a,,b'.split(',', 1) }}{{ 'x.y.z'.rsplit('.', 1)[0] }}",
                         "['a', 'b']['a', ',b']x.y"}));

// Markup of markupsafe: strings that escape the plain ones they meet, though autoescape is off.
INSTANTIATE_TEST_SUITE_P(
    Markup, Jinja,
    testing::Values(Case{"{{ '<' + ('<b>'|safe) + '&' }}", "&lt;<b>&amp;"}, Case{"{{ '<' ~ ('<b>'|safe) }}", "<<b>"},
                    Case{"{{ ('<'|e)|e }}{{ ('<'|e)|forceescape }}", "&lt;&amp;lt;"},
                    Case{"{{ ('%s-%d'|safe) % ('<', 3) }}", "&lt;-3"}, Case{"{{ '%s' % ('<'|safe) }}", "<"},
                    Case{"{{ ('{}|{}'|safe).format('<', '<'|safe) }}", "&lt;|<"},
                    Case{"{{ ('a<'|safe).replace('a', '>') }}{{ 'a'|safe|replace('a', '>') }}", "&gt;<>"},
                    Case{"{{ ('-'|safe).join(['<', '>'|safe]) }}{{ ['<'|safe, '>']|join('&') }}", "&lt;-><&>"},
                    Case{"{{ ('a b'|safe).split() }}{{ ('ab'|safe)[0] + '<' }}{{ ('ab'|safe)|first + '<' }}",
                         "[Markup('a'), Markup('b')]a&lt;a<"},
                    Case{"{{ ('x'|safe) is escaped }}{{ 'x' is escaped }}{{ 'x'|safe == 'x' }}", "TrueFalseTrue"},
                    Case{"{{ ('<'|safe)|upper + '<' }}{{ ('<'|safe)|title + '<' }}{{ ('<'|safe)|tojson }}",
                         "<&lt;<<\"<\""}));

}  // namespace
}  // namespace lk
