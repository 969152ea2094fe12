# SPDX-License-Identifier: Apache-2.0
"""Hostile and mistaken requests: always a 4xx in OpenAI's error shape, never a 5xx, and the server goes on."""
import json
import random
import socket
import unittest

from harness import PATIENCE, ServerTest, wait_for

MESSAGES = [{"role": "user", "content": "Hi"}]
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/adapters")
PARSED = POSTS[:5]


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


class Ignored(ServerTest):
    """A server of its own: a name is logged once."""
    ADAPTERS = ("sql",)

    def test_what_is_ignored(self):
        fields = {"metadata": {"a": "b"}, "store": False, "service_tier": "auto", "my_own_field": [1], "x" * 300: 1, "top_p": None, "stop": None, "tools": None, "seed": None,
                  "logit_bias": None, "response_format": None, "stream": None, "n": None, "temperature": None, "parallel_tool_calls": True, "safety_identifier": "x"}
        self.assertEqual(self.server.chat(max_tokens=1, **fields).status, 200)
        wait_for(lambda: self.server.event("fields_ignored"), "the line about them")
        named = self.server.event("fields_ignored")["fields"].split(", ")
        self.assertEqual(sorted(named), ["metadata", "my_own_field", "safety_identifier", "service_tier", "store", "x" * 64])
        # Once for each name; counted each time.
        self.assertEqual(self.server.chat(max_tokens=1, store=True, my_own_field=1, **{"stream_options": None}).status, 200)
        self.assertEqual(self.server.post("/v1/chat/completions", {"model": "sql", "max_tokens": 1, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}], "mine": 1}, {"role": "user", "content": "b", "mine": 2}]}).status, 200)
        wait_for(lambda: len(self.server.events("fields_ignored")) == 2, "a second line")
        self.assertEqual(sorted(self.server.events("fields_ignored")[1]["fields"].split(", ")), ["messages.content.cache_control", "messages.mine"])
        metrics = self.server.get("/metrics").text
        for name, count in (("store", 2), ("my_own_field", 2), ("messages.mine", 2), ("metadata", 1)):
            self.assertRegex(metrics, rf'lorikeet_request_fields_ignored_total{{[^}}]*field="{name}"}} {count}\n')


class BadInput(ServerTest):
    ADAPTERS = ("sql",)
    OPTIONS = ("--max-body", "1MiB", "--log-level", "debug")

    @classmethod
    def tearDownClass(cls):
        assert cls.server.chat(max_tokens=1).status == 200
        assert "internal_error" not in cls.server.log, cls.server.log
        super().tearDownClass()

    def client_error(self, answer, *statuses: int):
        self.assertIn(answer.status, statuses or (400, 404, 413, 415, 422), answer)
        self.refused(answer, answer.status) if answer.headers.get("content-type", "").startswith("application/json") and isinstance(
            answer.json["error"].get("code"), (str, type(None))) else self.assertIn("message", answer.json["error"])

    def test_bodies(self):
        bodies = (b"", b" ", b"{", b"}", b"[]", b"null", b"5", b'"x"', b"\x00", b"{}x", b'{"model": "sql",}', b'{"a": nan}', b'{"a": NaN}', b'{"a": Infinity}', b'{"a": -Infinity}',
                  b'{"a": 1e999}', b'{"a": 01}', b'{"a": +1}', b'{"a": .5}', b'{"a": 0x10}', b"{'a': 1}", b'{"a": "\n"}', b'{"a": "\\x"}', b'{"a": "\xff"}', b'{"a\xc3": 1}',
                  b'{"a": "\xed\xa0\x80"}', b'{"a": "\\ud800"}', b'{"a": "\\udc00\\ud800"}', b'\xef\xbb\xbf{"a": 1}', b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 2}}',
                  b'{"a": ' + nested(65) + b"}", b'{"a": ' + nested(100_000) + b"}", b'{"a": ' + b"9" * 400 + b"}", b'{"a": 18446744073709551616}', b"[" * 500_000,
                  b'{"a":' * 100_000, b'{"\\u0061": 1, "a": 2}', "{\"a\": 1}".encode("utf-16"))
        for path in POSTS:
            for body in bodies:
                with self.subTest(path=path, body=body[:40]):
                    self.client_error(self.server.post(path, body), 400, 404, 413)

    def test_duplicate_keys_are_named(self):
        body = b'{"model": "sql", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "max_tokens": 2}'
        self.refused(self.server.post("/v1/chat/completions", body), 400, "max_tokens", "twice")

    def test_fields(self):
        numbers = ("x", [], {}, True, -1, 1e300, -1e300, 2**63, -(2**63) - 1, 1.5, "1")
        cases = [(name, value) for name in ("n", "max_tokens", "max_completion_tokens", "top_logprobs", "min_tokens", "truncate_prompt_tokens") for value in numbers
                 if (name, value) != ("truncate_prompt_tokens", -1)]  # -1: as much as fits
        cases += [(name, value) for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
                  for value in ("x", [], {}, True, 1e300, -1e300, 2**63)]
        cases += [("n", 0), ("n", 17), ("max_tokens", 0), ("top_logprobs", 21), ("top_logprobs", 1), ("best_of", 2), ("temperature", -0.1), ("top_p", 0),
                  ("top_p", 1.1), ("presence_penalty", 2.1), ("frequency_penalty", -2.1), ("top_k", -2), ("top_k", "x"), ("repetition_penalty", 1e-31), ("seed", "x"), ("seed", 1.5), ("seed", 2**64),
                  ("stop", 5), ("stop", [5]), ("stop", ["x"] * 17), ("stop", "x" * 257), ("stop", ""), ("stop", [""]), ("stop", {}),
                  ("logit_bias", {str(i): 1 for i in range(1025)}), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"-1": 1}),
                  ("logit_bias", {"99999": 1}), ("logit_bias", {"1": "x"}), ("logit_bias", []), ("logit_bias", {"1": None}),
                  ("stop_token_ids", [99999]), ("stop_token_ids", "x"), ("allowed_token_ids", []), ("allowed_token_ids", [-1]),
                  ("stream", "yes"), ("stream", 1), ("stream_options", {"include_usage": True}), ("logprobs", 5), ("logprobs", "x"), ("echo", "x"), ("ignore_eos", 1),
                  ("model", 5), ("model", []), ("model", "x" * 10_000), ("user", 5), ("user", "x" * 100_000), ("tools", {}), ("tools", [5]),
                  ("tools", [{"type": "function", "function": {"name": "a b"}}]), ("tools", [{"type": "function", "function": {"name": "f", "parameters": 5}}]),
                  ("tool_choice", "required"), ("response_format", "json"), ("response_format", {}), ("response_format", {"type": "json_schema", "json_schema": {}}),
                  ("guided_regex", "x" * 70_000), ("guided_json", "[" * 1000), ("cache_salt", "x" * 129), ("chat_template", "{{ 1 }}"), ("priority", "x"), ("lora_path", "/etc"),
                  ("use_beam_search", True), ("suffix", "x"), ("prompt_logprobs", 21), ("modalities", ["audio"]), ("functions", [{}]), ("chat_template_kwargs", {"messages": "x"}),
                  ("documents", "x"), ("continue_final_message", 1), ("reasoning_effort", 5), ("messages", None), ("messages", []), ("messages", "x"), ("messages", [5]), ("messages", {})]
        for name, value in cases:
            with self.subTest(name=name, value=str(value)[:40]):
                answer = self.server.post("/v1/chat/completions", {"model": "sql", "messages": MESSAGES, name: value})
                self.refused(answer, 400)
                error = answer.json["error"]
                self.assertTrue((error["param"] or "").startswith(name) or "64 bits" in error["message"], error)  # those are no JSON of ours

    def test_messages(self):
        for message in ({}, {"role": "user"}, {"content": "x"}, {"role": 5, "content": "x"}, {"role": "user", "content": 5}, {"role": "user", "content": None},
                        {"role": "user", "content": {}}, {"role": "user", "content": [5]}, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
                        {"role": "user", "content": [{"type": "text"}]}, {"role": "user", "content": [{"text": "x"}]}, {"role": "function", "content": "x"},
                        {"role": "", "content": "x"}, {"role": "user", "content": "x", "tool_calls": [{}]}, {"role": "assistant"}, {"role": "assistant", "tool_calls": [{"function": {}}]},
                        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": 5}}]},
                        {"role": "user", "content": "word " * 2000}):
            with self.subTest(message=str(message)[:60]):
                answer = self.server.post("/v1/chat/completions", {"model": "sql", "messages": [message]})
                self.refused(answer, 400)
                self.assertTrue((answer.json["error"]["param"] or "").startswith("messages"), answer)

    def test_prompts(self):
        for prompt in (None, "", [], [[]], [""], {}, 5, True, [1.5], [-1], [1536], [2**40], ["a", 5], [5, "a"], [["a"]], [None], ["x"] * 10_000, "word " * 1000,
                       [5] * 513):
            with self.subTest(prompt=str(prompt)[:40]):
                answer = self.server.complete(prompt, "sql")
                self.refused(answer, 400)
                self.assertTrue((answer.json["error"]["param"] or "").startswith("prompt"), answer)
        self.refused(self.server.complete([5] * 513, "sql"), 400, param="prompt", code="context_length_exceeded")
        self.refused(self.server.complete("word " * 100_000, "sql"), 400, "more than 1024 tokens", param="prompt", code="context_length_exceeded")
        self.refused(self.server.chat("word " * 100_000, "sql"), 400, "more than 1024 tokens", param="messages", code="context_length_exceeded")
        self.refused(self.server.complete("x", "sql", max_tokens=0), 400)
        self.refused(self.server.complete("x", "sql", logprobs=21), 400)
        self.assertEqual(self.server.complete("x", "sql", max_tokens=10**9).status, 200)  # cut to the context

    def test_what_other_servers_take(self):
        ask = lambda **fields: self.good(self.server.chat("x", "sql", temperature=0, max_tokens=60, **fields))["choices"][0]["message"]["content"]  # noqa: E731
        number = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": False}
        for fields in ({"json_schema": number}, {"response_format": {"type": "json_object", "schema": number}},
                       {"response_format": {"type": "json_schema", "schema": number}}):
            self.assertEqual(json.loads(ask(**fields)), {"a": 7}, fields)
        for fields in ({"regex": "abc[d]"}, {"ebnf": 'root ::= "abcd"'}, {"grammar": 'root ::= "ab" "cd"'}):
            self.assertEqual(ask(**fields), "abcd", fields)
        self.assertEqual(self.good(self.server.complete("x", "sql", n_predict=3, ignore_eos=True))["usage"]["completion_tokens"], 3)
        self.assertEqual(self.good(self.server.complete("x", "sql", n_predict=9, max_tokens=2, ignore_eos=True))["usage"]["completion_tokens"], 2)
        plain = self.good(self.server.complete("Once upon a time", "base", temperature=0, max_tokens=30))["choices"][0]["text"]
        word = plain.split()[0]
        for bad in ([word], [word[1:3]], [" "]):
            text = self.good(self.server.complete("Once upon a time", "base", temperature=0, max_tokens=30, bad_words=bad))["choices"][0]["text"]
            self.assertNotIn(bad[0], text)
        tokens = self.server.post("/tokenize", {"model": "base", "prompt": "one two three four five six", "add_special_tokens": False}).json["tokens"]
        for fields, kept in (({"truncate_prompt_tokens": 2}, tokens[-2:]), ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, tokens[:2]),
                             ({"truncate_prompt_tokens": -1}, tokens)):
            answer = self.good(self.server.complete(tokens, "base", max_tokens=1, return_token_ids=True, **fields))
            self.assertEqual(answer["choices"][0]["prompt_token_ids"], kept, fields)
        long = self.good(self.server.complete("word " * 3000, "base", max_tokens=5, truncate_prompt_tokens=-1))
        self.assertEqual(long["usage"]["prompt_tokens"], 512 - 5)
        self.assertEqual(self.server.post("/v1/embeddings", {"model": "base", "input": "word " * 3000, "truncate_prompt_tokens": -1}).json["usage"]["prompt_tokens"], 512)
        self.assertEqual(self.server.complete("x", "sql", max_tokens=1, priority=-3).status, 200)
        # What changes nothing passes, what would change the meaning is refused by its name.
        self.assertEqual(self.server.chat("x", "sql", max_tokens=1, repeat_penalty=1.0, typical_p=1, top_n_sigma=-1, mirostat=0, dry_multiplier=0.0, length_penalty=1,
                                          n_probs=0, stop_regex=None).status, 200)
        for field, value in (("repeat_penalty", 1.1), ("typical_p", 0.5), ("mirostat", 2), ("stop_regex", "a"), ("input_ids", [1]), ("n_probs", 3), ("grammar_lazy", True),
                             ("truncate_prompt_tokens", 0), ("truncation_side", "middle"), ("priority", "high"), ("n_predict", -2), ("vllm_xargs", {"a": 1}),
                             ("logprob_token_ids", [1])):
            self.refused(self.server.chat("x", "sql", max_tokens=1, **{field: value}), 400, param=field)
        for format, param in (({"type": "text", "schema": number}, "response_format.schema"), ({"type": "json_object", "json_schema": {"schema": number}}, "response_format.json_schema"),
                              ({"type": "json_schema", "schema": number, "json_schema": {"schema": number}}, "response_format.schema")):
            self.refused(self.server.chat("x", "sql", response_format=format), 400, param=param)

    def test_content_types(self):
        body = {"model": "sql", "messages": MESSAGES, "max_tokens": 1}
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml", "x", "json"):
            self.refused(self.server.post("/v1/chat/completions", body, headers={"Content-Type": kind}), 415)
        for kind in ("application/json", "application/json; charset=utf-8", "application/json;charset=UTF-8"):
            self.assertEqual(self.server.post("/v1/chat/completions", body, headers={"Content-Type": kind}).status, 200, kind)

    def test_body_sizes(self):
        self.refused(self.server.complete("x" * (1 << 20), "sql"), 413)
        for path in ("/health", "/ready", "/version", "/openapi.json", "/", "/v1/models", "/metrics"):  # nobody reads a body there
            self.refused(self.server.call("GET", path, b"x" * 5000), 413)
            self.assertEqual(self.server.call("GET", path, b"{}").status, 200, path)
        for head in (b"Content-Length: 99999999999\r\n", b"Content-Length: 1048577\r\n"):
            answer = self.server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head + b"\r\n")
            self.assertTrue(answer.startswith(b"HTTP/1.1 413 "), answer[:80])
        chunks = b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(20)) + b"0\r\n\r\n"
        answer = self.server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        self.assertTrue(answer.startswith(b"HTTP/1.1 413 ") or answer == b"", answer[:80])  # the rest of the body may reset the connection
        self.refused(self.server.get("/v1/models/" + "x" * 2000), 404)

    def test_malformed_http(self):
        good = b"Host: localhost\r\nContent-Type: application/json\r\n"
        for data in (b"\x00\x01\x02\x03\r\n\r\n", b"GET\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost x\r\n\r\n", b"G@T / HTTP/1.1\r\n\r\n",
                     b"GET / HTTP/1.1\nHost: localhost\n\n", b"GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /\x7f HTTP/1.1\r\nHost: localhost\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: y\r\n\r\n", b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\n" + good + b"Content-Length: -1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n" + good + b"Content-Length: x\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\n" + good + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                     b"POST /v1/completions HTTP/1.1\r\n" + good + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                     b"POST /v1/completions HTTP/1.1\r\n" + good + b"Transfer-Encoding: gzip\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\n" + good + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
                     b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(2000)) + b"\r\n", b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 20_000 + b"\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"):
            with self.subTest(data=data[:60]):
                answer = self.server.raw(data, close_sending=True)
                if not answer:
                    continue  # closed without a word
                self.assertTrue(answer.startswith(b"HTTP/1.1 4") or answer.startswith(b"HTTP/1.1 505 ") or answer.startswith(b"HTTP/1.1 501 "), answer[:100])
                self.assertIn("message", json.loads(answer.partition(b"\r\n\r\n")[2])["error"])

    def test_cut_connections(self):
        whole = json.dumps({"model": "sql", "messages": MESSAGES, "max_tokens": 5}).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
        host, port = self.server.address.rsplit(":", 1)
        for end in range(1, len(request), 7):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
                connection.sendall(request[:end])
        answer = self.server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{}", close_sending=True)
        self.assertFalse(answer.startswith(b"HTTP/1.1 5"), answer[:100])

    def test_mutations(self):
        """Valid requests with a few bytes changed never give a 5xx."""
        rng = random.Random(7)
        bodies = [("/v1/chat/completions", {"model": "sql", "messages": MESSAGES, "max_tokens": 3, "stop": ["a"], "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1}}),
                  ("/v1/completions", {"model": "sql*0.5+sql*0.5", "prompt": [[5, 6], [7]], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 2}),
                  ("/v1/chat/completions", {"model": "sql", "messages": MESSAGES, "max_tokens": 3, "guided_regex": "(a|b){2,5}[0-9]*"}),
                  ("/v1/chat/completions", {"model": "sql", "messages": MESSAGES, "max_tokens": 3, "guided_json": {"type": "object", "properties": {"a": {"type": "integer"}}}}),
                  ("/v1/embeddings", {"model": "sql", "input": ["a", "b"], "dimensions": 5}), ("/detokenize", {"tokens": [1, 2, 3]}),
                  ("/v1/adapters", {"name": "x", "path": "y", "pinned": True})]
        for i in range(300):
            path, body = bodies[i % len(bodies)]
            data = bytearray(json.dumps(body).encode())
            for _ in range(rng.randint(1, 4)):
                at = rng.randrange(len(data))
                choice = rng.randrange(4)
                if choice == 0:
                    data[at] = rng.randrange(256)
                elif choice == 1:
                    del data[at]
                elif choice == 2:
                    data[at:at] = rng.choice((b'"', b"{", b"[", b"]", b"}", b",", b"0", b"-", b"e9", b"null", b"\\u0000", b"\xf0\x9f"))
                else:
                    data[at:at + 1] = bytes([data[at]]) * rng.randint(2, 20)
            answer = self.server.post(path, bytes(data))
            self.assertLess(answer.status, 500, (bytes(data), answer))


if __name__ == "__main__":
    unittest.main()
