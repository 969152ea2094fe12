# SPDX-License-Identifier: Apache-2.0
"""Long answers, answers that would be too long, streams that wait."""
import json
import signal
import threading
import unittest

from harness import Directory, PATIENCE, ServerTest

LONG_PROMPT = "The quick brown fox jumps over the lazy dog. " * 12


def raw_events(response) -> list:
    """The lines of a stream of events, without the empty ones, as they come."""
    lines = []
    while line := response.readline():
        if line != b"\n":
            lines.append(line.decode().rstrip("\n"))
    return lines


class Long(ServerTest):
    ADAPTERS = ("sql",)
    OPTIONS = ("--io-threads", "1")

    def plain(self, **fields) -> dict:
        answer = self.good(self.server.call("POST", "/v1/completions", {"model": "base", "prompt": LONG_PROMPT, "temperature": 0, "ignore_eos": True, **fields}))
        for key in ("id", "created"):
            answer.pop(key)
        return answer

    def test_long_answers_are_what_short_ones_are(self):
        few = {"echo": True, "logprobs": 20, "return_token_ids": True, "max_tokens": 3}
        one = self.plain(**few)
        many = self.plain(n=16, prompt_logprobs=20, **few)
        self.assertGreater(len(json.dumps(many)), 1 << 20)
        for choice in many["choices"]:
            alone = one["choices"][0]
            for key in ("text", "logprobs", "token_ids", "prompt_token_ids", "finish_reason"):
                self.assertEqual(choice[key], alone[key], key)
            self.assertEqual(len(choice["prompt_logprobs"]), len(choice["prompt_token_ids"]))

    def test_long_events_keep_the_order(self):
        fields = {"echo": True, "logprobs": 20, "return_token_ids": True, "max_tokens": 40}
        whole = self.plain(**fields)["choices"][0]
        body = {"model": "base", "prompt": LONG_PROMPT, "temperature": 0, "ignore_eos": True, "n": 3, **fields}
        events = self.server.stream("/v1/completions", body)
        for index in range(3):
            pieces = [choice for event in events for choice in event["choices"] if choice["index"] == index]
            self.assertGreater(len(json.dumps(pieces[0])), 32 << 10)  # the prompt and its log-probabilities
            self.assertEqual("".join(piece["text"] for piece in pieces), whole["text"])
            tokens = [token for piece in pieces if piece["logprobs"] for token in piece["logprobs"]["tokens"]]
            self.assertEqual(tokens, whole["logprobs"]["tokens"])
            self.assertEqual([token for piece in pieces for token in piece.get("token_ids") or []], whole["token_ids"])
            self.assertEqual(pieces[-1]["finish_reason"], "length")

    def test_embeddings(self):
        inputs = ["one", "two three"] * 60
        data = self.good(self.server.post("/v1/embeddings", {"input": inputs}))["data"]
        alone = self.good(self.server.post("/v1/embeddings", {"input": "one"}))["data"][0]["embedding"]
        self.assertEqual([entry["index"] for entry in data], list(range(120)))
        self.assertEqual(data[0]["embedding"], alone)

    def test_others_are_answered_before_a_long_answer_ends(self):
        # One io thread: whoever comes while the answer is made or sent has it to itself for a moment.
        done = threading.Event()
        answers = []

        def ask():
            answers.append(self.plain(n=16, echo=True, logprobs=20, prompt_logprobs=20, max_tokens=1))
            done.set()

        thread = threading.Thread(target=ask)
        thread.start()
        beside = 0
        while not done.is_set():
            self.assertEqual(self.server.get("/health").status, 200)
            beside += 1
        thread.join()
        self.assertGreater(beside, 0)
        self.assertEqual(len(answers[0]["choices"]), 16)


class Bounded(ServerTest):
    ADAPTERS = ("sql",)
    OPTIONS = ("--max-answer", "64KiB")

    def test_refused_with_the_reason(self):
        words = ("--max-answer", "64.0 KiB")
        body = {"model": "base", "prompt": "x", "max_tokens": 400, "n": 4, "logprobs": 20}
        self.refused(self.server.post("/v1/completions", body), 400, *words, param="logprobs", code="answer_too_large")
        self.refused(self.server.post("/v1/completions", {"prompt": [LONG_PROMPT] * 50, "max_tokens": 0, "echo": True, "logprobs": 5}), 400, *words, code="answer_too_large")
        self.refused(self.server.post("/v1/completions", {"prompt": [LONG_PROMPT] * 50, "stream": True, "echo": True, "logprobs": 5}), 400, *words, code="answer_too_large")
        self.refused(self.server.post("/v1/embeddings", {"input": ["x"] * 128}), 400, *words, param="input", code="answer_too_large")
        self.refused(self.server.post("/tokenize", {"prompt": "word " * 20_000, "return_token_strs": True}), 400, *words, param="prompt", code="answer_too_large")
        self.refused(self.server.post("/detokenize", {"tokens": [300] * 100_000}), 400, *words, param="tokens", code="answer_too_large")
        # What is streamed is not held.
        self.assertTrue(self.server.stream("/v1/completions", {**body, "max_tokens": 20}))
        self.good(self.server.post("/v1/completions", {**body, "n": 1, "max_tokens": 20}))

    def test_unsaid_lengths_are_cut_to_what_fits(self):
        answer = self.good(self.server.chat("Tell me a story.", model="base", ignore_eos=True, logprobs=True, top_logprobs=20))
        choice = answer["choices"][0]
        self.assertEqual(choice["finish_reason"], "length")
        self.assertLess(len(json.dumps(answer)), 2 * (64 << 10))
        self.assertGreater(len(choice["logprobs"]["content"]), 3)


class Waiting(Directory):
    def open(self, server, body: dict):
        connection = server.connect()
        self.addCleanup(connection.close)
        connection.request("POST", "/v1/completions", json.dumps({"model": "base", "prompt": "x", "stream": True, **body}), {"Content-Type": "application/json"})
        return connection.getresponse()

    def test_streams_that_wait_get_comments(self):
        server = self.start("--sse-ping", "0.3", "--max-running", "1", adapters=())
        with server.kept_busy({"model": "base", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "n": 16}):
            response = self.open(server, {"max_tokens": 3, "ignore_eos": True, "stream_options": {"include_usage": True}})
            self.assertEqual((response.status, response.getheader("content-type")), (200, "text/event-stream; charset=utf-8"))
            first = response.readline()  # before anything was computed for it
            self.assertEqual((first, response.readline()), (b": ping\n", b"\n"))
        lines = raw_events(response)
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        self.assertEqual(lines[-1], "data: [DONE]")
        self.assertEqual(set(line for line in lines if not line.startswith("data: ")) - {": ping"}, set())
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 3)

    def test_what_fails_while_it_waits_says_so_in_the_stream(self):
        for _ in range(10):  # until its turn does not come before the end
            server = self.start("--sse-ping", "0.3", "--max-running", "1", "--drain-timeout", "0", adapters=())
            with server.kept_busy({"model": "base", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "n": 16}):
                response = self.open(server, {})
                pinged = response.readline() == b": ping\n"
                server.signal(signal.SIGTERM)
                lines = raw_events(response)
            self.assertEqual(server.process.wait(PATIENCE), 0)
            events = [json.loads(line[6:]).keys() for line in lines if line.startswith("data: {")]
            if pinged and len(events) == 1:
                break
        self.assertTrue(pinged)
        self.assertEqual((events, lines[-1]), ([{"error"}], "data: [DONE]"))

    def test_none_when_not_wanted(self):
        server = self.start("--sse-ping", "0", "--max-running", "1", adapters=())
        with server.kept_busy({"model": "base", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "n": 16}):
            answer = server.call("POST", "/v1/completions", {"model": "base", "prompt": "x", "stream": True, "max_tokens": 1}, headers={"x-request-timeout": "1"})
            self.assertIn(answer.status, (408, 503))  # refused at once when the wait can be foreseen


if __name__ == "__main__":
    unittest.main()
