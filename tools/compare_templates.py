#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares our chat templates with jinja2, set up exactly as transformers sets it up.

  compare_templates.py [--build build/cpu-release] [--random 4000] [--seed 1] [--write]

Renders tests/text/fixtures/templates/*.jinja over a set of conversations, then seeded random small
templates, with both. --write stores the expected outputs in cases.json, which the unit tests check.
Exits non-zero on a difference; both failing is agreement. Needs jinja2 and transformers.
"""
import argparse
import copy
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from datetime import datetime, timezone

import transformers.utils.chat_template_utils as chat_template_utils

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests/text/fixtures/templates"
FIXED_TIME = 1_760_000_000


class FixedTime(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromtimestamp(FIXED_TIME, timezone.utc).replace(tzinfo=None)


def render_reference(source, variables):
    """(output, None) or (None, error)."""
    try:
        compiled = chat_template_utils._compile_jinja_template(source)
        given = {"tools": None, "documents": None, "add_generation_prompt": False,
                 **copy.deepcopy(variables)}  # the indent filter of jinja2 appends to a list in place
        return compiled.render(**given), None
    except Exception as error:  # any Python error is a failed rendering
        return None, f"{type(error).__name__}: {error}"


def build_driver(build):
    """The test driver, linked with the library of a build directory."""
    binary = os.path.join(tempfile.mkdtemp(), "template_driver")
    cxx = os.environ.get("CXX", "g++")
    command = [cxx, "-std=c++20", "-O1", f"-I{ROOT}/src", f"{ROOT}/tests/text/template_driver.cpp",
               f"{build}/src/lk/text/liblk_text.a", f"{build}/src/lk/base/liblk_base.a",
               *os.environ.get("CXXFLAGS", "").split(), "-lboost_json", "-lboost_container", "-lfmt",
               "-licui18n", "-licuuc", "-lpcre2-8", "-lpthread", "-o", binary]
    subprocess.run(command, check=True)
    return binary


def render_ours(driver, cases):
    lines = "".join(json.dumps({"template": s, "variables": v}) + "\n" for s, v in cases)
    result = subprocess.run([driver], input=lines, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in result.stdout.split("\n") if line]
    if len(answers) != len(cases):
        raise SystemExit(f"the driver answered {len(answers)} of {len(cases)} cases: {result.stderr[-2000:]}")
    return [(a.get("output"), a.get("error")) for a in answers]


# ---- conversations

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city.\nIn °C \"today\".",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "Name <of> the city & 'country'"},
        "unit": {"type": "string", "enum": ["c", "f"]},
        "days": {"type": "array", "items": {"type": "integer"}},
        "where": {"type": "object", "properties": {"lat": {"type": ["number", "null"]}}}},
        "required": ["city"]}}}
ADD = {"type": "function", "function": {"name": "add", "description": "", "parameters": {
    "type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "number"}}},
    "return": {"type": "number"}}}


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, call_id="abcdefgh1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def conversations():
    system = say("system", " Be brief.\n")
    user, answer = say("user", "Hello, wörld! 🦜"), say("assistant", "Hi there.")
    tool_round = [user, say("assistant", "", tool_calls=[call("get_weather", {"city": "Zürich", "days": [1, 2]})]),
                  say("tool", "{\"t\": 21.5}", tool_call_id="abcdefgh1"), say("assistant", "It is 21.5 °C.")]
    two_tools = [say("user", "Add things"),
                 say("assistant", "Sure.", tool_calls=[call("add", {"x": 1, "y": 2.50}), call("add", {"x": -3, "y": 1e20}, "short")]),
                 say("tool", "3.5"), say("tool", "1e20"), say("user", "Thanks")]
    thinking = [user, say("assistant", "<think>\nfirst\n</think>\n\nanswer one"), say("user", " and now? "),
                say("assistant", "<think>\n  second\n\n</think>\nanswer two\n")]
    yield "one user", dict(messages=[user])
    yield "prompted", dict(messages=[user], add_generation_prompt=True)
    yield "system", dict(messages=[system, user], add_generation_prompt=True)
    yield "two rounds", dict(messages=[system, user, answer, say("user", "  More?  "), say("assistant", "No.\n")])
    yield "two users", dict(messages=[user, user])
    yield "starts with assistant", dict(messages=[answer, user])
    yield "late system", dict(messages=[user, answer, system, user], add_generation_prompt=True)
    yield "unknown role", dict(messages=[user, say("narrator", "Later.")])
    yield "empty", dict(messages=[])
    yield "empty content", dict(messages=[say("user", ""), say("assistant", " \n ")])
    yield "null content", dict(messages=[user, say("assistant", None)])
    yield "tools", dict(messages=[system, user], tools=[WEATHER, ADD], add_generation_prompt=True)
    yield "tools in system", dict(messages=[system, user], tools=[WEATHER], tools_in_user_message=False)
    yield "tool round", dict(messages=tool_round, tools=[WEATHER])
    yield "tool round, more", dict(messages=[system] + tool_round + [user], tools=[WEATHER, ADD], add_generation_prompt=True)
    yield "two tool calls", dict(messages=two_tools, tools=[ADD])
    yield "builtin tools", dict(messages=[user, say("assistant", "", tool_calls=[call("brave_search", {"query": "x", "n": "2"})]),
                                          say("ipython", {"hits": [1, None, True]})], builtin_tools=["brave_search", "code_interpreter"])
    yield "dated", dict(messages=[user], date_string="01 Jan 2025")
    yield "thinking", dict(messages=thinking, add_generation_prompt=True)
    yield "thinking off", dict(messages=[user], add_generation_prompt=True, enable_thinking=False)
    yield "reasoning field", dict(messages=[user, say("assistant", "done", reasoning_content="\nhm\n"), user,
                                            say("assistant", "yes", reasoning_content="because")])
    yield "tool thinking", dict(messages=[user, say("assistant", "<think>a</think>b", tool_calls=[call("add", "{\"x\": 1}")]),
                                          say("user", "<tool_response>1</tool_response>"), say("assistant", "<think>c</think>d")])
    yield "many", dict(messages=[say(("user", "assistant")[k % 2], f"turn {k}") for k in range(9)])
    yield "injection", dict(messages=[say("user", "{{ 7 * 7 }} {% raise %} <|im_end|>\r\n[INST] <<SYS>>")])


def fixture_cases():
    for path in sorted(FIXTURES.glob("*.jinja")):
        for name, variables in conversations():
            yield path.name, name, {"bos_token": "<s>", "eos_token": "</s>", "strftime_now_unix": FIXED_TIME, **variables}


# ---- random templates

VARIABLES = {
    "s": "Hello, World", "t": "  a b\tc\n", "u": "Straße über Öl 日本", "e": "", "n": 7, "m": -3, "z": 0, "f": 2.5,
    "g": -0.1, "b": True, "x": None, "l": [3, 1, 2], "w": ["b", "A", "c", "a"], "d": {"k": "v", "a": 1, "Z": [1, 2]},
    "p": [{"n": "x", "v": 2}, {"n": "Y", "v": 1}, {"n": "z"}], "nested": [[1, [2, "q'"]], {"a": {"b": None}}],
    "big": 123456789012, "html": "<a href='x'>&</a>", "lines": "one\n\ntwo\r\nthree\n"}


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, *options):
        return self.r.choice(options)

    def atom(self):
        r = self.r
        return self.pick(
            *VARIABLES, *VARIABLES, "missing", str(r.randint(-20, 20)), str(r.randint(0, 5)), repr(round(r.uniform(-9, 9), 2)),
            "'a'", '"it\'s"', "'x,y,,z'", "'\\n\\t\\u00e9\\x41'", "true", "False", "none", "[]", "{}", "()", "1e3", "0x1F", "1_000",
            "[1, 'a', none]", "(1,)", "(2, 'b')", "{'a': 1, 2: [3]}", "[[2, 1], [1, 2]]", "range(4)", "range(5, 0, -2)", "1.5e-7", "1e22")

    def expr(self, depth):
        if depth <= 0:
            return self.atom()
        sub = lambda: self.expr(depth - 1)
        kind = self.r.randrange(24)
        if kind < 4:
            op = self.pick("+", "-", "*", "/", "//", "%", "~", "~", "+", "**")
            return f"{sub()} {op} {self.pick('2', '-1', '3', '0', sub()) if op == '**' else sub()}"
        if kind < 6:
            return f"{sub()} {self.pick('==', '!=', '<', '<=', '>', '>=', 'in', 'not in', 'and', 'or')} {sub()}"
        if kind == 6:
            return f"{self.pick('not ', '-', '+')}{sub()}"
        if kind == 7:
            return f"({sub()})"
        if kind == 8:
            return f"({sub()} if {sub()}{self.pick('', ' else ' + sub())})"
        if kind == 9:
            b = lambda: self.pick("", "", "0", "1", "-1", "2", "-3", "100")
            return f"({sub()})[{b()}:{b()}{self.pick('', ':', ':-1', ':2', ':-2')}]"
        if kind == 10:
            return f"({sub()})[{self.pick('0', '-1', '1', repr('k'), repr('a'), sub())}]"
        if kind == 11:
            return f"({sub()}).{self.pick('k', 'a', 'n', 'v', 'missing', '0', 'b')}"
        if kind == 12:
            return f"({sub()}).{self.method()}"
        if kind == 13:
            return f"({sub()} is {self.pick('', 'not ')}{self.test()})"
        if kind == 14:
            return f"[{sub()}, {sub()}]"
        if kind == 15:
            return f"{{'q': {sub()}, {self.atom()}: {sub()}}}"
        if kind == 16:
            return f"('{self.pick('%s', '%r', '%d|%s', '%5.2f', '%-8s|', '%05d', '%x', '%e', '%g', '%+d %%', '%3s%c')}' % {self.pick(sub(), '(' + sub() + ', ' + sub() + ')')})"
        if kind < 18:
            return f"({sub()})|{self.filter()}"
        return self.typed()

    # Mostly valid: a receiver of the right type for the filter or method.
    def typed(self):
        text = self.pick("s", "t", "u", "e", "html", "lines", "'x,y,,z'", "'ab' * 3", "s[::-1]", "w|join(' ')")
        if self.r.random() < 0.35:
            return f"{text}.{self.method()}" if text[0] in "stuehl" and "*" not in text and "|" not in text else f"({text}).{self.method()}"
        receiver = self.pick(text, text, self.pick("n", "m", "f", "g", "big", "2.675", "-7"), "l", "w", "p", "p", "d", "nested", "range(5)|list")
        chain = "|".join(self.filter() for _ in range(self.r.randint(1, 2)))
        return f"({receiver})|{chain}"

    def method(self):
        c = lambda: self.pick("'a'", "' '", "','", "'l'", "'He'", "'\\n'", "''", "none")
        i = lambda: self.pick("1", "2", "-1", "0", "20")
        return self.pick(
            f"strip({self.pick('', c())})", f"lstrip({self.pick('', c())})", f"rstrip({self.pick('', c())})", "upper()", "lower()",
            "title()", "capitalize()", f"split({self.pick('', c(), c() + ', ' + i())})", f"rsplit({self.pick('', c(), c() + ', ' + i())})",
            "splitlines()", "splitlines(true)", f"startswith({c()})", f"endswith({c()})", f"replace({c()}, {c()})", f"replace({c()}, {c()}, {i()})",
            f"find({c()})", f"rfind({c()})", f"count({c()})", f"find({c()}, {i()})", f"join({self.pick('w', 's', 'l')})", "items()|list", "keys()|list",
            "values()|list", "items()", "keys()", "get('a')", "get('zz', 5)", "index(1)", "count(1)", "isdigit()", "isalpha()", "isspace()", "isupper()",
            "islower()", "isalnum()", f"zfill({i()})", f"ljust({i()}, '*')", f"rjust({i()})", f"center({i()}, '-')", f"partition({c()})",
            f"rpartition({c()})", f"removeprefix({c()})", f"removesuffix({c()})", "append(1)", "pop()", "update({})", "__class__",
            "format(1)", f"startswith(('a', {c()}))")

    def test(self):
        return self.pick(
            "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "sequence", "iterable", "true", "false",
            "odd", "even", "divisibleby(2)", "divisibleby 3", "callable", "lower", "upper", f"eq({self.atom()})", f"ne {self.atom()}", f"in({self.atom()})",
            f"lt({self.atom()})", f"ge({self.atom()})", "sameas none", "sameas(true)", "equalto(1)", "escaped", "filter", "test", "nosuchtest")

    def filter(self):
        a = self.atom
        return self.pick(
            "safe", "e", "forceescape", "safe|string", "upper", "lower", "title", "capitalize", "trim", "trim('a')", "length", "count", "list", "string", "int", "int(5)", "int(0, 16)", "float",
            "abs", "round", "round(1)", "round(1, 'floor')", "round(0, 'ceil')", "round(-1)", "first", "last", "reverse|list", "reverse", "join", "join(', ')",
            "sort", "sort(reverse=true)", "sort(attribute='v')", "sort(case_sensitive=true)", "unique|list", "min", "max", "sum", "sum(attribute='v')",
            "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(indent=0)",
            f"default({a()})", f"default({a()}, true)", f"d({a()})", f"replace({self.pick(repr('a'), a())}, {a()})", "items|list", "dictsort", "dictsort(true)",
            "dictsort(by='value')", "dictsort(reverse=true)", "map('upper')|list", "map(attribute='n')|list", "map(attribute='n')|join('+')",
            "map(attribute='v', default=0)|list", "map('int')|sum", "map('string')|list", "select|list", "select('odd')|list", "select('string')|list",
            "reject('none')|list", "reject('gt', 1)|list", "selectattr('v')|list", "selectattr('v', 'eq', 1)|list", "rejectattr('n', 'eq', 'x')|list",
            "selectattr('v', 'defined')|list", "indent", "indent(2, true)", "indent('> ', blank=true)", "batch(2)|list", "batch(2, '-')|list", "slice(2)|list",
            "groupby('n')", "groupby('v', default=0)", "escape|string", "center(12)", "truncate(5)", "truncate(6, true, '.', 0)", "wordcount", "format(1)",
            "map('tojson')|join(' ')", "select", "length > 2", "nosuchfilter")

    def statement(self, depth):
        e = lambda: self.expr(2)
        s = lambda: self.pick("", "-", "-", "+")
        space = lambda: self.pick("", " ", "\n", "\n  ", "  \n\n ", "x\n", " text ", "\t")
        body = lambda: self.template(depth - 1)
        o = lambda word: f"{{%{s()} {word} {s()}%}}"
        kind = self.r.randrange(14)
        if kind < 5 or depth <= 0:
            return f"{{{{{self.pick('', '-')} {e()} {self.pick('', '-')}}}}}"
        if kind == 5:
            return f"{{#{s()} note {s()}#}}"
        if kind == 6:
            return o(f"if {e()}") + body() + self.pick("", o(f"elif {e()}") + body()) + self.pick("", o("else") + body()) + o("endif")
        if kind == 7:
            inner = self.pick("{{ i }}", "{{ loop.index }}{{ loop.last }}", "{{ loop.previtem }}|{{ loop.nextitem }}", "{{ i }}{% if loop.index > 1 %}{% break %}{% endif %}",
                              "{% if loop.first %}{% continue %}{% endif %}{{ loop.revindex0 }}", "{% set n = i %}{{ n }}", "{{ loop.length }}")
            return o(f"for i in {e()}{self.pick('', ' if i', ' if loop is defined')}") + space() + inner + body() + self.pick("", o("else") + body()) + o("endfor")
        if kind == 8:
            return o(f"for i, j in {self.pick('d.items()', 'd|dictsort', '[[1, 2], (3, 4)]', e())}") + "{{ i }}={{ j }}" + space() + o("endfor")
        if kind == 9:
            return o(f"set v1 = {e()}") + space() + "{{ v1 }}"
        if kind == 10:
            return o(f"set v2{self.pick('', ' | upper', ' | trim | title')}") + body() + o("endset") + "[{{ v2 }}]"
        if kind == 11:
            return o("set ns = namespace(c=0)") + o("for i in l") + o("set ns.c = ns.c + i") + o("endfor") + "{{ ns.c }}"
        if kind == 12:
            return o("macro mm(a, b=2)") + "{{ a }}-{{ b }}" + space() + o("endmacro") + "{{ mm(%s) }}" % self.pick("1", "s, n", "b=s", "a=1, b=l", "1, 2, 3", "c=1", "*l[:2]", "")
        return self.pick("{% raw %} {{ x }} {% endraw %}", "{% with a = n %}{{ a }}{% endwith %}{{ a }}", "{% filter upper %}" + body() + "{% endfilter %}",
                         "{% generation %}" + body() + "{% endgeneration %}", "{% print s %}", "{% set a, b = l[:2] %}{{ a }}{{ b }}", "{% nosuchtag %}", "{{ '%}' }}", "{{ {'a': {}} }}", "{{", "{% if n %}")

    def template(self, depth):
        space = lambda: self.pick("", "", " ", "\n", "\n  ", "  \n\n ", "x\n", " text ", "\t", "\r\n")
        return "".join(space() + self.statement(depth) + space() for _ in range(self.r.randint(1, 2)))


# Where we differ on purpose: the text of our error says which.
ACCEPTED = ("does not fit 64 bits", "integer overflow", "cannot print a generator", "cannot print a function", "is not supported",
            "nest", "complex", "cannot be sliced", "strings are not", "Unicode character")


def same(reference, ours):
    if reference[0] is not None and ours[0] is not None:
        return reference[0] == ours[0]
    if reference[0] is None and ours[0] is None:
        return True
    return ours[1] is not None and any(reason in ours[1] for reason in ACCEPTED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--build", default=str(ROOT / "build/cpu-release"))
    parser.add_argument("--random", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    chat_template_utils.datetime = FixedTime
    warnings.simplefilter("ignore", SyntaxWarning)
    driver = build_driver(options.build)

    rows = list(fixture_cases())
    cases = [((FIXTURES / name).read_text(), variables) for name, _, variables in rows]
    labels = [f"{name} / {title}" for name, title, _ in rows]
    expected = [render_reference(*case) for case in cases]
    if options.write:
        stored = [{"template": name, "case": title, "variables": variables,
                   **({"output": output} if error is None else {"error": error.split(": ", 1)[1]
                      if error.startswith("TemplateError") else ""})}
                  for (name, title, variables), (output, error) in zip(rows, expected)]
        (FIXTURES / "cases.json").write_text(
            "[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in stored) + "\n]\n")
    num_fixtures = len(cases)

    for k in range(options.random):
        generator = Generator(f"{options.seed}/{k}")
        source = generator.template(2) if k % 3 == 0 else "{{ " + generator.expr(1 + k % 4) + " }}"
        cases.append((source, VARIABLES))
        labels.append(f"random {options.seed}/{k}")
        expected.append(render_reference(source, VARIABLES))
    ours = render_ours(driver, cases)
    shutil.rmtree(os.path.dirname(driver))

    different = [k for k in range(len(cases)) if not same(expected[k], ours[k])]
    accepted = sum((e[0] is None) != (o[0] is None) for e, o in zip(expected, ours)) - sum(
        (expected[k][0] is None) != (ours[k][0] is None) for k in different)
    rendered = sum(e[0] is not None for e in expected)
    for k in different[:options.show]:
        print(f"--- {labels[k]}\n{cases[k][0] if k >= num_fixtures else ''}\n  jinja2: {expected[k]}\n  ours:   {ours[k]}")
    print(f"{num_fixtures} fixture cases, {options.random} random: {rendered} render, {len(cases) - rendered} fail in jinja2; "
          f"{accepted} accepted refusals of ours; {len(different)} differences")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
