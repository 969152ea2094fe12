# SPDX-License-Identifier: Apache-2.0
"""Anthropic's Messages API: the answers that chat gives, as blocks and as events, and its way to refuse."""
import json
import unittest

from fleet_test import CHAT, MESSAGES, Router
from harness import PATIENCE, Directory, Server, ServerTest
from named_events import named_events
from reasoning_test import BUDGET, THINKS
from router_test import Behind
from text_side_test import SmallBase

RIGA = "Which customers live in Riga?"
QUESTION = [{"role": "user", "content": RIGA}]
PARAMETERS = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
TOOL = {"name": "save", "input_schema": PARAMETERS}
NESTED = {"type": "function", "function": {"name": "save", "parameters": PARAMETERS}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"], "additionalProperties": False}
# The same question to both.
PAIRS = {
    "greedy": ({"model": "sql", "max_tokens": 60, "temperature": 0, "messages": QUESTION},) * 2,
    "sampled": ({"model": "base", "max_tokens": 20, "seed": 7, "top_p": 0.9, "top_k": 50, "system": "Be short.", "messages": QUESTION},
                {"model": "base", "max_tokens": 20, "seed": 7, "top_p": 0.9, "top_k": 50, "messages": [{"role": "system", "content": "Be short."}, *QUESTION]}),
    "stop": ({"model": "sql", "max_tokens": 60, "temperature": 0, "messages": QUESTION, "stop_sequences": ["WHERE"]},
             {"model": "sql", "max_tokens": 60, "temperature": 0, "messages": QUESTION, "stop": ["WHERE"]}),
    "schema": ({"model": "json", "max_tokens": 60, "seed": 7, "messages": QUESTION, "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
               {"model": "json", "max_tokens": 60, "seed": 7, "messages": QUESTION, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}),
    "any tool": ({"model": "json", "max_tokens": 60, "seed": 7, "messages": QUESTION, "tools": [TOOL], "tool_choice": {"type": "any"}},
                 {"model": "json", "max_tokens": 60, "seed": 7, "messages": QUESTION, "tools": [NESTED], "tool_choice": "required"}),
    "one tool": ({"model": "json", "max_tokens": 60, "seed": 8, "messages": QUESTION, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "save"}},
                 {"model": "json", "max_tokens": 60, "seed": 8, "messages": QUESTION, "tools": [NESTED], "tool_choice": {"type": "function", "function": {"name": "save"}}}),
    "a loop": ({"model": "json", "max_tokens": 12, "seed": 9, "tools": [TOOL], "messages": [
                   *QUESTION, {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "save", "input": {"age": 3}}]},
                   {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "saved"}]}]},
               {"model": "json", "max_tokens": 12, "seed": 9, "tools": [NESTED], "messages": [
                   *QUESTION, {"role": "assistant", "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "save", "arguments": "{\"age\": 3}"}}]},
                   {"role": "tool", "tool_call_id": "t1", "content": "saved"}]}),
    "continued": ({"model": "sql", "max_tokens": 60, "temperature": 0, "messages": [*QUESTION, {"role": "assistant", "content": "SELECT *"}]},
                  {"model": "sql", "max_tokens": 60, "temperature": 0, "messages": [*QUESTION, {"role": "assistant", "content": "SELECT *"}],
                   "continue_final_message": True, "add_generation_prompt": False}),
}


def text_of(message: dict) -> str:
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


class Messages(ServerTest):
    def ask(self, body: dict, **kwargs) -> dict:
        return self.good(self.server.post(MESSAGES, body, **kwargs))

    def wrong(self, answer, status: int, kind: str, *words: str):
        """Anthropic's error shape."""
        self.assertEqual(answer.status, status, answer)
        self.assertEqual((set(answer.json), answer.json["type"], answer.json["error"]["type"]), ({"type", "error"}, "error", kind), answer)
        for word in words:
            self.assertIn(word, answer.json["error"]["message"])

    def test_answers_as_chat(self):
        for name, (own, chat) in PAIRS.items():
            with self.subTest(name):
                message, said = self.ask(own, headers={"anthropic-version": "2023-06-01"}), self.good(self.server.post(CHAT, chat))
                choice = said["choices"][0]
                self.assertEqual(text_of(message), choice["message"]["content"] or "")
                uses = [(b["name"], b["input"]) for b in message["content"] if b["type"] == "tool_use"]
                calls = choice["message"].get("tool_calls", [])
                reason = {"length": "max_tokens"}.get(choice["finish_reason"], "tool_use" if calls else "stop_sequence" if name == "stop" else "end_turn")
                self.assertEqual((message["stop_reason"], message["stop_sequence"]), (reason, "WHERE" if name == "stop" else None))
                if reason != "max_tokens":
                    self.assertEqual(uses, [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls])
                usage = message["usage"]
                self.assertEqual((usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"]),
                                 (said["usage"]["prompt_tokens"], said["usage"]["completion_tokens"]))
                self.assertEqual((message["type"], message["role"], message["model"]), ("message", "assistant", said["model"]))

    def test_events(self):
        for name, (body, _) in PAIRS.items():
            with self.subTest(name):
                whole = self.ask(body)
                events = named_events(self.server.address, MESSAGES, body)
                kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
                self.assertEqual(kinds, ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"])
                start, end = events[0]["message"], events[-2]
                self.assertEqual((start["content"], start["stop_reason"], start["role"]), ([], None, "assistant"))
                self.assertEqual(start["usage"]["input_tokens"] + start["usage"]["cache_read_input_tokens"],
                                 whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"])
                self.assertEqual(end["delta"], {key: whole[key] for key in ("stop_reason", "stop_sequence")})
                self.assertEqual(end["usage"]["output_tokens"], whole["usage"]["output_tokens"])
                deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
                [block] = whole["content"]
                if block["type"] == "text":
                    self.assertEqual("".join(delta["text"] for delta in deltas), block["text"])
                else:
                    opened = events[2]["content_block"]
                    self.assertEqual((opened["type"], opened["name"], opened["input"]), ("tool_use", "save", {}))
                    self.assertTrue(opened["id"].startswith("toolu_"))
                    text = "".join(delta["partial_json"] for delta in deltas)
                    if whole["stop_reason"] == "tool_use":
                        self.assertEqual(json.loads(text), block["input"])

    def test_count_tokens(self):
        for name, (body, _) in PAIRS.items():
            with self.subTest(name):
                asked = {key: body[key] for key in ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config") if key in body}
                counted = self.good(self.server.post(MESSAGES + "/count_tokens", asked))
                usage = self.ask(body)["usage"]
                self.assertEqual(counted, {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]})
        self.wrong(self.server.post(MESSAGES + "/count_tokens", {"model": "sql"}), 400, "invalid_request_error", '"messages"')

    def test_full_context(self):
        message = self.ask({"model": "base", "max_tokens": 100_000, "messages": QUESTION, "ignore_eos": True, "temperature": 0})
        self.assertEqual(message["stop_reason"], "model_context_window_exceeded")

    def test_refusals(self):
        body = {"model": "sql", "max_tokens": 4, "messages": QUESTION}
        self.wrong(self.server.post(MESSAGES, {**body, "model": "nobody"}), 404, "not_found_error", "nobody")
        self.wrong(self.server.post(MESSAGES, {**body, "max_tokens": None}), 400, "invalid_request_error", '"max_tokens" is missing')
        self.wrong(self.server.post(MESSAGES, {**body, "messages": [{"role": "user", "content": "word " * 1000}]}), 400, "invalid_request_error", "context")
        self.wrong(self.server.post(MESSAGES, b"{"), 400, "invalid_request_error", "JSON")
        self.wrong(self.server.get(MESSAGES), 405, "invalid_request_error")
        self.wrong(self.server.post(MESSAGES, body, headers={"Content-Type": "text/plain"}), 415, "invalid_request_error")


class Keys(Directory):
    def test_x_api_key(self):
        key = self.keys("create", "--tenant", "acme", "--scope", "infer")
        server = self.start(state=self.path("state.db"))
        body = {"model": "sql", "max_tokens": 4, "messages": QUESTION}
        for headers, status in (({"x-api-key": key}, 200), ({"Authorization": f"Bearer {key}"}, 200), ({}, 401), ({"x-api-key": "sk-ant-wrong"}, 401)):
            for path in (MESSAGES, MESSAGES + "/count_tokens"):
                answer = server.post(path, body, headers=headers)
                self.assertEqual(answer.status, status, answer)
                if status == 401:
                    self.assertEqual((answer.json["type"], answer.json["error"]["type"]), ("error", "authentication_error"), answer)


class KeysOfARouter(Behind):
    def test_x_api_key(self):
        router = self.route()
        body = {"model": "sql", "max_tokens": 4, "messages": QUESTION, "temperature": 0}
        events = named_events(router.address, MESSAGES, body, headers={"x-api-key": self.infer})
        self.assertEqual(events[-1], {"type": "message_stop"})
        status, error = router.json("POST", MESSAGES, body)
        self.assertEqual((status, error["type"], error["error"]["type"]), (401, "error", "authentication_error"))
        status, error = router.json("POST", MESSAGES, {**body, "model": "tag"}, key=self.infer)
        self.assertEqual((status, error["error"]["type"]), (404, "not_found_error"))
        self.assertEqual(router.json("POST", MESSAGES + "/count_tokens", {"model": "sql", "messages": QUESTION}, key=self.infer)[0], 200)


class Thoughts(SmallBase):
    def test_are_blocks(self):
        self.make_adapter("thinks", {"chat_template.jinja": THINKS})
        server = self.serve("thinks")
        fields = {key: value for key, value in BUDGET.items() if key != "thinking_token_budget"}
        body = {"model": "thinks", "max_tokens": 40, "messages": [{"role": "user", "content": "x"}], "guided_regex": "[ab]{3}", **fields,
                "thinking": {"type": "enabled", "budget_tokens": 5}}
        said = server.chat("x", "thinks", guided_regex="[ab]{3}", **BUDGET).json["choices"][0]["message"]
        message = server.post(MESSAGES, body).json
        self.assertEqual(message["content"], [{"type": "thinking", "thinking": said["reasoning"], "signature": ""}, {"type": "text", "text": said["content"]}])
        events = named_events(server.address, MESSAGES, body)
        self.assertEqual([event["content_block"]["type"] for event in events if event["type"] == "content_block_start"], ["thinking", "text"])
        self.assertEqual("".join(event["delta"].get("thinking", "") for event in events if event["type"] == "content_block_delta"), said["reasoning"])
        back = [*body["messages"], {"role": "assistant", "content": message["content"]}, {"role": "user", "content": "y"}]
        self.assertGreater(server.post(MESSAGES, {**body, "messages": back}).json["usage"]["input_tokens"], len("<think></think>abcde"))
        quiet = server.post(MESSAGES, {**body, "thinking": {"type": "disabled"}}).json
        self.assertEqual([block["type"] for block in quiet["content"]], ["text"])
        hidden = server.post(MESSAGES, {**body, "thinking": {"type": "enabled", "budget_tokens": 5, "display": "omitted"}}).json
        self.assertEqual(hidden["content"], message["content"][1:])


class ThroughARouter(unittest.TestCase):
    LONG = {"model": "sql", "messages": QUESTION, "seed": 5, "temperature": 1.2, "max_tokens": 300, "ignore_eos": True}

    def test_goes_on_when_its_replica_is_lost(self):
        replicas = [Server() for _ in range(2)]
        for replica in replicas:
            self.addCleanup(replica.stop)
        router = Router(*(replica.address for replica in replicas))
        self.addCleanup(router.stop)
        router.ready(2)

        def kill():
            [serving] = [replica for shown, replica in zip(router.status()["replicas"], replicas) if shown["routed"]]
            serving.process.kill()

        quiet = named_events(router.address, MESSAGES, self.LONG)[1:]
        self.assertEqual(named_events(router.address, MESSAGES, self.LONG, 60, kill)[1:], quiet)
        self.assertEqual(router.status()["continued"], 1)
        # Nobody is left: its own error.
        router.ready(1)
        alive = next(replica for replica in replicas if replica.process.poll() is None)
        alive.process.kill()
        alive.process.wait(PATIENCE)
        status, error = router.json("POST", MESSAGES, self.LONG)
        self.assertEqual((status, error["type"], error["error"]["type"]), (503, "error", "overloaded_error"))


if __name__ == "__main__":
    unittest.main()
