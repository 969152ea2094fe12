# SPDX-License-Identifier: Apache-2.0
"""OpenAI's Responses API: the answers that chat gives, as items and as events."""
import unittest

from fleet_test import CHAT, RESPONSES, Router
from harness import Server, ServerTest
from named_events import named_events
from reasoning_test import BUDGET, MARK, THINKS
from text_side_test import SmallBase

RIGA = "Which customers live in Riga?"
QUESTION = [{"role": "user", "content": RIGA}]
PARAMETERS = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
FLAT = {"type": "function", "name": "save", "parameters": PARAMETERS}
NESTED = {"type": "function", "function": {"name": "save", "parameters": PARAMETERS}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": False}
# The same question to both.
PAIRS = {
    "greedy": ({"model": "sql", "input": RIGA, "temperature": 0}, {"model": "sql", "messages": QUESTION, "temperature": 0}),
    "sampled": ({"input": QUESTION, "seed": 7, "temperature": 1.2, "top_p": 0.9, "max_output_tokens": 20, "instructions": "Be short."},
                {"messages": [{"role": "system", "content": "Be short."}, *QUESTION], "seed": 7, "temperature": 1.2, "top_p": 0.9, "max_completion_tokens": 20}),
    "schema": ({"model": "json", "input": RIGA, "seed": 7, "max_output_tokens": 60, "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
               {"model": "json", "messages": QUESTION, "seed": 7, "max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}),
    "forced call": ({"model": "json", "input": RIGA, "seed": 7, "max_output_tokens": 60, "tools": [FLAT], "tool_choice": "required"},
                    {"model": "json", "messages": QUESTION, "seed": 7, "max_tokens": 60, "tools": [NESTED], "tool_choice": "required"}),
    "named call": ({"model": "json", "input": RIGA, "seed": 8, "tools": [FLAT], "tool_choice": {"type": "function", "name": "save"}},
                   {"model": "json", "messages": QUESTION, "seed": 8, "tools": [NESTED], "tool_choice": {"type": "function", "function": {"name": "save"}}}),
    "a loop": ({"model": "json", "seed": 9, "max_output_tokens": 12, "tools": [FLAT], "input": [
                   *QUESTION, {"type": "function_call", "call_id": "c1", "name": "save", "arguments": "{\"age\": 3}"},
                   {"type": "function_call_output", "call_id": "c1", "output": "saved"}]},
               {"model": "json", "seed": 9, "max_tokens": 12, "tools": [NESTED], "messages": [
                   *QUESTION, {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "save", "arguments": "{\"age\": 3}"}}]},
                   {"role": "tool", "tool_call_id": "c1", "content": "saved"}]}),
}


def text_of(response: dict) -> str:
    return "".join(part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"])


def without_names(response: dict) -> dict:
    """What two answers to one request have in common."""
    output = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in response["output"]]
    return {**{k: v for k, v in response.items() if k not in ("id", "created_at", "usage")}, "output": output}


class Responses(ServerTest):
    def ask(self, body: dict) -> dict:
        return self.good(self.server.post(RESPONSES, body))

    def test_answers_as_chat(self):
        for name, (own, chat) in PAIRS.items():
            with self.subTest(name):
                answer, said = self.ask(own), self.good(self.server.post(CHAT, chat))
                choice = said["choices"][0]
                self.assertEqual(text_of(answer), choice["message"]["content"] or "")
                calls = [(i["name"], i["arguments"]) for i in answer["output"] if i["type"] == "function_call"]
                self.assertEqual(calls, [(c["function"]["name"], c["function"]["arguments"]) for c in choice["message"].get("tool_calls", [])])
                usage = answer["usage"]
                self.assertEqual((usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]),
                                 (said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"], said["usage"]["total_tokens"]))
                cut = choice["finish_reason"] == "length"
                self.assertEqual((answer["status"], answer["incomplete_details"]), ("incomplete", {"reason": "max_output_tokens"}) if cut else ("completed", None))
                self.assertEqual((answer["object"], answer["store"], answer["error"], answer["model"]), ("response", False, None, said["model"]))

    def test_events(self):
        for name, (body, _) in PAIRS.items():
            with self.subTest(name):
                events = named_events(self.server.address, RESPONSES, body)
                self.assertEqual([event["sequence_number"] for event in events], list(range(len(events))))
                kinds = [event["type"].removeprefix("response.") for event in events]
                self.assertEqual(kinds[:2], ["created", "in_progress"])
                self.assertEqual([event["response"]["output"] for event in events[:2]], [[], []])
                whole = self.ask(body)
                self.assertEqual(kinds[-1], whole["status"])
                last = events[-1]["response"]
                self.assertEqual(without_names(last), without_names(whole))
                self.assertEqual(last["usage"]["output_tokens"], whole["usage"]["output_tokens"])
                self.assertEqual({event["response"]["id"] for event in events if "response" in event}, {last["id"]})
                [item] = last["output"]
                calls = item["type"] == "function_call"
                delta, done = ("function_call_arguments.delta", "function_call_arguments.done") if calls else ("output_text.delta", "output_text.done")
                pieces = [event for event in events if event["type"] == "response." + delta]
                self.assertEqual("".join(event["delta"] for event in pieces), item["arguments"] if calls else text_of(last))
                frame = [kind for kind in kinds if kind != delta]
                self.assertEqual(frame, ["created", "in_progress", "output_item.added", *([] if calls else ["content_part.added"]), done,
                                         *([] if calls else ["content_part.done"]), "output_item.done", whole["status"]])
                self.assertTrue(all(event["item_id"] == item["id"] and event["output_index"] == 0 for event in pieces))
                [ended] = [event for event in events if event["type"] == "response.output_item.done"]
                self.assertEqual(ended["item"], item)
                [closed] = [event for event in events if event["type"] == "response." + done]
                self.assertEqual(closed["arguments"] if calls else closed["text"], item["arguments"] if calls else text_of(last))

    def test_logprobs(self):
        body = {"model": "sql", "input": RIGA, "temperature": 0, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
        said = self.good(self.server.post(CHAT, {"model": "sql", "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 2}))
        [item] = self.ask(body)["output"]
        self.assertEqual(item["content"][0]["logprobs"], said["choices"][0]["logprobs"]["content"])
        events = named_events(self.server.address, RESPONSES, body)
        self.assertEqual(events[-1]["response"]["output"][0]["content"], item["content"])
        pieces = [token for event in events if event["type"] == "response.output_text.delta" for token in event["logprobs"]]
        self.assertEqual(pieces, item["content"][0]["logprobs"][:len(pieces)])

    def test_what_is_repeated(self):
        body = {"model": "sql", "input": RIGA, "max_output_tokens": 3, "temperature": 0.5, "metadata": {"a": "b"}, "tools": [FLAT], "tool_choice": "none", "instructions": "Be short.",
                "parallel_tool_calls": False, "reasoning": {"effort": "low"}, "user": "u", "text": {"verbosity": "low"}}
        answer = self.ask(body)
        for name in ("max_output_tokens", "temperature", "metadata", "tools", "tool_choice", "instructions", "parallel_tool_calls", "user"):
            self.assertEqual(answer[name], body[name], name)
        self.assertEqual((answer["reasoning"]["effort"], answer["text"], answer["truncation"], answer["top_p"]),
                         ("low", {"verbosity": "low", "format": {"type": "text"}}, "disabled", 1))

    def test_too_long_conversations(self):
        turns = [{"role": role, "content": f"{i} " + "word " * 20} for i in range(20) for role in ("user", "assistant")]
        body = {"model": "sql", "instructions": "Be short.", "input": [*turns, *QUESTION], "temperature": 0, "max_output_tokens": 4}
        self.refused(self.server.post(RESPONSES, body), 400, "context", param="input", code="context_length_exceeded")
        shortened = self.ask({**body, "truncation": "auto"})
        # As much of the end as fits, and never half a turn.
        for first in range(0, len(turns) + 1, 2):
            answer = self.server.post(RESPONSES, {**body, "input": [*turns[first:], *QUESTION]})
            if answer.status == 200:
                self.assertEqual((text_of(shortened), shortened["usage"]["input_tokens"]), (text_of(answer.json), answer.json["usage"]["input_tokens"]))
                break
        self.refused(self.server.post(RESPONSES, {**body, "input": "word " * 1000, "truncation": "auto"}), 400, param="input", code="context_length_exceeded")

    def test_refusals(self):
        for fields, param in (({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background"),
                              ({"conversation": {"id": "c"}}, "conversation"), ({"prompt": {"id": "p"}}, "prompt"), ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
                              ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}}, "text.format.schema")):
            self.refused(self.server.post(RESPONSES, {"model": "sql", "input": RIGA, **fields}), 400, param=param)
        self.refused(self.server.post(RESPONSES, {"model": "nobody", "input": RIGA}), 404, code="model_not_found")
        for method, path in (("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel"),
                             ("GET", "/v1/responses/resp_1/input_items"), ("POST", "/v1/conversations")):
            self.refused(self.server.call(method, path), 404, code="not_found")
        self.refused(self.server.get(RESPONSES), 405)

    def test_are_counted(self):
        before = self.server.get("/metrics").text
        self.assertEqual(self.ask({"input": RIGA, "max_output_tokens": 2})["status"], "incomplete")
        counted = [line for line in self.server.get("/metrics").text.splitlines() if line.startswith('lorikeet_endpoint_requests_total{endpoint="responses"}')]
        self.assertEqual(len(counted), 1, before)


class Thoughts(SmallBase):
    def test_are_items(self):
        self.make_adapter("thinks", {"chat_template.jinja": THINKS})
        server = self.serve("thinks")
        body = {"model": "thinks", "input": "x", "guided_regex": "[ab]{3}", **BUDGET}
        said = server.chat("x", "thinks", guided_regex="[ab]{3}", **BUDGET).json["choices"][0]["message"]
        answer = server.post(RESPONSES, body).json
        thoughts, message = answer["output"]
        self.assertEqual((thoughts["type"], thoughts["content"]), ("reasoning", [{"type": "reasoning_text", "text": said["reasoning"]}]))
        self.assertEqual(message["content"][0]["text"], said["content"])
        self.assertEqual(answer["usage"]["output_tokens_details"], {"reasoning_tokens": 5 + MARK})
        events = named_events(server.address, RESPONSES, body)
        kinds = [event["type"].removeprefix("response.") for event in events if not event["type"].endswith("delta")]
        part = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
        self.assertEqual(kinds, ["created", "in_progress", *part[0], "reasoning_text.done", *part[1], *part[0], "output_text.done", *part[1], "completed"])
        self.assertEqual("".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta"), said["reasoning"])
        # What was thought goes back, and the template shows it.
        again = server.post(RESPONSES, {**body, "input": [{"role": "user", "content": "x"}, *answer["output"], {"role": "user", "content": "y"}]}).json
        self.assertGreater(again["usage"]["input_tokens"], answer["usage"]["input_tokens"] + len("<think></think>abcde"))
        quiet = server.post(RESPONSES, {"model": "thinks", "input": "x", "guided_regex": "[ab]{3}", "reasoning": {"effort": "none"}, "seed": 5}).json
        self.assertEqual([item["type"] for item in quiet["output"]], ["message"])


class ThroughARouter(unittest.TestCase):
    LONG = {"model": "sql", "input": QUESTION, "seed": 5, "temperature": 1.2, "max_output_tokens": 300, "ignore_eos": True}

    def setUp(self):
        self.replicas = [Server() for _ in range(2)]
        for replica in self.replicas:
            self.addCleanup(replica.stop)
        self.router = Router(*(replica.address for replica in self.replicas))
        self.addCleanup(self.router.stop)
        self.router.ready(2)

    def kill_serving(self):
        for shown, replica in zip(self.router.status()["replicas"], self.replicas):
            if shown["routed"]:
                replica.process.kill()
                return
        raise AssertionError("nobody serves it")

    def test_goes_on_when_its_replica_is_lost(self):
        quiet = named_events(self.router.address, RESPONSES, self.LONG)
        killed = named_events(self.router.address, RESPONSES, self.LONG, 60, self.kill_serving)
        self.assertEqual([event["sequence_number"] for event in killed], list(range(len(quiet))))
        self.assertEqual([event.get("delta") for event in killed], [event.get("delta") for event in quiet])
        self.assertEqual(without_names(killed[-1]["response"]), without_names(quiet[-1]["response"]))
        self.assertEqual(killed[-1]["response"]["usage"]["output_tokens"], quiet[-1]["response"]["usage"]["output_tokens"])
        status, answer = self.router.json("POST", RESPONSES, {**self.LONG, "max_output_tokens": 5})
        self.assertEqual((status, answer["status"]), (200, "incomplete"))
        self.assertEqual(self.router.status()["continued"], 1)
        status, error = self.router.json("POST", RESPONSES, {**self.LONG, "lorikeet_resume": {"id": "x"}})
        self.assertEqual((status, error["error"]["param"]), (403, "lorikeet_resume"))

    def test_one_that_nobody_goes_on_with_ends_in_an_error(self):
        logprobs = {**self.LONG, "include": ["message.output_text.logprobs"]}
        events = named_events(self.router.address, RESPONSES, logprobs, 60, self.kill_serving)
        self.assertEqual(events[-1]["type"], "error")
        self.assertEqual((events[-1]["code"], events[-1]["sequence_number"]), ("no_replica", events[-2]["sequence_number"] + 1), events[-1])


if __name__ == "__main__":
    unittest.main()
