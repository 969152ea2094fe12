# SPDX-License-Identifier: Apache-2.0
"""Models that think before they answer: thoughts told apart, grammars behind them, budgets, answers that go on elsewhere."""
import json
import unittest

from fleet_test import CHAT, groups_of, take
from text_side_test import TEMPLATE, TOOL, SmallBase, tokens_of

# As Qwen3's and DeepSeek-R1's: the prompt begins the thoughts, or ends them at once; earlier ones are shown.
THINKS = ("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
          "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
          "{% if add_generation_prompt %}assistant:{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>\n{% endif %}{% endif %}"
          "{# <tool_call> #}")
LETTERS = {"allowed_token_ids": list(range(ord("a"), ord("z") + 1)), "temperature": 1, "seed": 5}
BUDGET = {**LETTERS, "thinking_token_budget": 5}
MARK = len("</think>")  # of so many tokens: the vocabulary has bytes


class Reasoning(SmallBase):
    def start_thinking(self, *options: str):
        self.make_adapter("thinks", {"chat_template.jinja": THINKS})
        self.make_adapter("plain", {})
        return self.serve("thinks", "plain", options=options)

    def test_thoughts_and_what_binds_the_answer(self):
        server = self.start_thinking()
        answer = server.chat("x", "thinks", guided_regex="[ab]{3}", **BUDGET).json
        message = answer["choices"][0]["message"]
        self.assertRegex(message["reasoning"], "^[a-z]{5}$")
        self.assertEqual(message["reasoning_content"], message["reasoning"])
        self.assertRegex(message["content"], "^[ab]{3}$")
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        self.assertEqual((answer["usage"]["completion_tokens"], answer["usage"]["completion_tokens_details"]), (5 + MARK + 3 + 1, {"reasoning_tokens": 5 + MARK}))
        events = server.stream(CHAT, {"model": "thinks", "messages": [{"role": "user", "content": "x"}], "guided_regex": "[ab]{3}", **BUDGET})
        deltas = [event["choices"][0]["delta"] for event in events]
        self.assertEqual("".join(delta.get("reasoning", "") for delta in deltas), message["reasoning"])
        self.assertEqual("".join(delta.get("reasoning_content", "") for delta in deltas), message["reasoning"])
        self.assertEqual("".join(delta.get("content", "") for delta in deltas), message["content"])
        hidden = server.chat("x", "thinks", guided_regex="[ab]{3}", include_reasoning=False, **BUDGET).json
        self.assertEqual(hidden["choices"][0]["message"], {"role": "assistant", "content": message["content"], "refusal": None})
        self.assertEqual(hidden["usage"]["completion_tokens_details"], answer["usage"]["completion_tokens_details"])
        whole = server.chat("x", "thinks", separate_reasoning=False, max_tokens=9, **LETTERS).json["choices"][0]["message"]
        self.assertRegex(whole["content"], "^[a-z]{9}$")
        # Merged is a matter of form: what is bound still waits for the end of the thoughts.
        merged = server.chat("x", "thinks", guided_regex="[ab]{3}", separate_reasoning=False, **BUDGET).json
        self.assertEqual(merged["choices"][0]["message"]["content"], message["reasoning"] + "</think>" + message["content"])
        # No thoughts: the template says so, or the model's template knows none.
        for model, fields in (("thinks", {"chat_template_kwargs": {"enable_thinking": False}}), ("plain", {}), ("base", {})):
            short = server.chat("x", model, guided_regex="[ab]{3}", **LETTERS, **fields).json
            self.assertNotIn("reasoning", short["choices"][0]["message"])
            self.assertRegex(short["choices"][0]["message"]["content"], "^[ab]{3}$")
        # A budget is kept by a model that does not think.
        unthinking = server.chat("x", "plain", guided_regex="[ab]{3}", **BUDGET).json["choices"][0]["message"]
        self.assertNotIn("reasoning", unthinking)
        self.assertRegex(unthinking["content"], "^[ab]{3}$")
        choices = server.chat("x", "thinks", guided_regex="[ab]{3}", n=3, **BUDGET).json
        for choice in choices["choices"]:
            self.assertRegex(choice["message"]["reasoning"], "^[a-z]{5}$")
            self.assertRegex(choice["message"]["content"], "^[ab]{3}$")
        self.assertEqual(choices["usage"]["completion_tokens_details"]["reasoning_tokens"], 3 * (5 + MARK))

    def test_cut_in_mid_thought_and_calls_behind_it(self):
        server = self.start_thinking()
        cut = server.chat("x", "thinks", max_tokens=3, **LETTERS).json["choices"][0]
        self.assertRegex(cut["message"]["reasoning"], "^[a-z]{3}$")
        self.assertEqual((cut["message"]["content"], cut["finish_reason"]), (None, "length"))
        tools = {"tools": [TOOL], "temperature": 1, "seed": 3, "thinking_token_budget": 2, "max_tokens": 200}
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            answer = server.chat("x", "thinks", tool_choice=choice, **tools).json["choices"][0]
            [call] = answer["message"]["tool_calls"]
            self.assertEqual(call["function"]["name"], "get_weather")
            self.assertTrue(call["function"]["arguments"].startswith("{"), call)
            self.assertIsNone(answer["message"]["content"])
        # Cut before the call has a name: no call, and no half of one as text.
        none = server.chat("x", "thinks", tool_choice="required", **{**tools, "max_tokens": 2 + MARK + 6}).json["choices"][0]
        self.assertEqual((none["message"]["content"], none["finish_reason"], "tool_calls" in none["message"]), (None, "length", False), none)

    def test_a_call_beside_a_format_is_a_call(self):
        server = self.start_thinking()
        schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}}}
        kinds = set()
        for seed in range(24):  # a model that knows nothing, and is pushed towards the mark
            answer = server.chat("x", "thinks", tools=[TOOL], response_format=schema, seed=seed, temperature=3, thinking_token_budget=1, max_tokens=300,
                                 logit_bias={str(ord("<")): 8 if seed % 2 else -8}).json["choices"][0]
            message = answer["message"]
            if answer["finish_reason"] == "length":
                continue
            if "tool_calls" in message:
                [call] = message["tool_calls"]
                self.assertEqual((call["function"]["name"], answer["finish_reason"], message["content"]), ("get_weather", "tool_calls", None), message)
                self.assertIsInstance(json.loads(call["function"]["arguments"]), dict)
            else:
                self.assertIn(json.loads(message["content"]), ({"a": 1}, {"a": 2}))
            kinds.add("tool_calls" in message)
        self.assertEqual(kinds, {True, False})

    def test_earlier_thoughts_reach_the_template(self):
        server = self.start_thinking()
        for name in ("reasoning", "reasoning_content", "thinking"):
            messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", name: "hm"}, {"role": "user", "content": "c"}]
            self.assertIn(b"assistant:<think>hm</think>b", bytes(t for t in tokens_of(server, "thinks", messages) if t < 256))

    def test_a_mark_that_is_cut_off_shows_nowhere(self):
        server = self.start_thinking()
        for length in range(5, 5 + MARK + 1):
            fields = {"max_tokens": length, **BUDGET}
            cut = server.chat("x", "thinks", **fields).json["choices"][0]
            self.assertRegex(cut["message"]["reasoning"], "^[a-z]{5}$", length)
            self.assertEqual((cut["message"]["content"] or "", cut["finish_reason"]), ("", "length"))
            events = server.stream(CHAT, {"model": "thinks", "messages": [{"role": "user", "content": "x"}], **fields})
            deltas = [event["choices"][0]["delta"] for event in events]
            self.assertEqual("".join(delta.get("reasoning", "") for delta in deltas), cut["message"]["reasoning"], length)

    def test_the_operator_chooses(self):
        off = self.start_thinking("--reasoning-parser", "off")
        plain = off.chat("x", "thinks", max_tokens=9, **LETTERS).json
        self.assertEqual(set(plain["choices"][0]["message"]), {"role", "content", "refusal"})
        self.assertNotIn("completion_tokens_details", plain["usage"])
        # What is chosen is the base's; an adapter whose template knows no thoughts has none.
        self.make_adapter("silent", {"chat_template.jinja": TEMPLATE + " "})
        chosen = self.serve("thinks", "silent", options=("--reasoning-parser", "deepseek_r1"))
        for model, thinks in (("base", True), ("thinks", True), ("silent", False)):
            message = chosen.chat("x", model, max_tokens=4, **LETTERS).json["choices"][0]["message"]
            self.assertEqual("reasoning" in message, thinks, (model, message))

    def test_goes_on_elsewhere_wherever_it_is_cut(self):
        server, other = self.start_thinking(), self.start_thinking()
        ask = {"model": "thinks", "messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        for fields in ({"guided_regex": "[ab]{3}", **BUDGET}, {"max_tokens": 12, "logprobs": True, **BUDGET}, {"max_tokens": 20, "n": 2, **BUDGET},
                       {"guided_regex": "[ab]{3}", "include_reasoning": False, **BUDGET}):
            whole = groups_of(server, CHAT, {**ask, **fields}, [])
            split = lambda groups: sorted(event for events, _ in groups for event in events.split("\n\n") if event)  # noqa: E731
            choices = []
            for cut, (_, commit) in enumerate(whole):
                rest = groups_of(other, CHAT, {**ask, **fields}, choices)
                if "n" in fields:  # choices come in any order
                    self.assertEqual(split(whole[:cut] + rest), split(whole), f"cut behind group {cut}")
                else:
                    self.assertEqual("".join(events for events, _ in whole[:cut] + rest), "".join(events for events, _ in whole), f"cut behind group {cut}")
                take(choices, commit)


if __name__ == "__main__":
    unittest.main()
