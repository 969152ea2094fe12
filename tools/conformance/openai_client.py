#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The stock `openai` client (and LangChain, when it is installed) against `lorikeet serve`.

    pip install -r tools/conformance/requirements.txt     # its first part
    python tools/conformance/openai_client.py build/cpu-release/bin/lorikeet
"""
import asyncio
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import running_server

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "build/cpu-release/bin/lorikeet"
RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
PERSON = "My friend Emma Weber works as a writer in Athens and is 41."
MESSAGES = [{"role": "user", "content": RIGA}]


class Person(BaseModel):
    name: str
    age: int


SAVE = {"type": "function", "function": {"name": "save", "parameters": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
                                                                        "required": ["age"], "additionalProperties": False}}}


class Stock(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running_server.start(BINARY, "--tool-call-parser", "hermes")
        cls.url = f"http://{cls.server.address}/v1"
        cls.client = OpenAI(base_url=cls.url, api_key="unused", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.stop(0)

    def ask(self, **fields):
        return self.client.chat.completions.create(**{"model": "sql", "messages": MESSAGES, "temperature": 0, **fields})

    def test_chat(self):
        answer = self.ask()
        self.assertEqual(answer.choices[0].message.content, SQL)
        self.assertEqual((answer.choices[0].finish_reason, answer.model), ("stop", "sql"))
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)

    def test_stream(self):
        chunks = list(self.ask(stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), SQL)
        self.assertGreater(chunks[-1].usage.completion_tokens, 5)

    def test_stream_helper(self):
        with self.client.chat.completions.stream(model="sql", messages=MESSAGES, temperature=0) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertEqual(final.choices[0].message.content, SQL)
        self.assertIn("content.delta", kinds)
        self.assertIn("content.done", kinds)

    def test_async(self):
        async def several():
            async with AsyncOpenAI(base_url=self.url, api_key="unused") as client:
                answers = await asyncio.gather(*(client.chat.completions.create(model=m, messages=MESSAGES, temperature=0) for m in ("sql", "base") * 8))
                stream = await client.chat.completions.create(model="sql", messages=MESSAGES, temperature=0, stream=True)
                return answers, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answers, streamed = asyncio.run(several())
        self.assertEqual({a.choices[0].message.content for a in answers[::2]}, {SQL})
        self.assertEqual(len({a.choices[0].message.content for a in answers[1::2]}), 1)
        self.assertEqual(streamed, SQL)

    def test_cancelled_stream(self):
        stream = self.ask(stream=True, max_tokens=400, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()

        async def cancelled():
            async with AsyncOpenAI(base_url=self.url, api_key="unused") as client:
                task = asyncio.create_task(client.completions.create(model="sql", prompt="x", max_tokens=500, n=16, extra_body={"ignore_eos": True}))
                await asyncio.sleep(0.05)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
        asyncio.run(cancelled())
        end = time.monotonic() + 30
        while self.server.status()["requests"]["running"] > 0:
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def test_several_and_seed(self):
        one, two = (self.ask(model="base", n=3, temperature=1, seed=3, max_tokens=12) for _ in range(2))
        self.assertEqual([c.message.content for c in one.choices], [c.message.content for c in two.choices])
        self.assertEqual([c.index for c in one.choices], [0, 1, 2])

    def test_logprobs(self):
        content = self.ask(logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual("".join(t.token for t in content), SQL + "<|im_end|>")  # the token that ended it is reported, as vLLM does
        self.assertTrue(all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob == t.logprob for t in content))

    def test_parse(self):
        answer = self.client.chat.completions.parse(model="json", messages=[{"role": "user", "content": PERSON}], temperature=0, response_format=Person)
        self.assertEqual(answer.choices[0].message.parsed, Person(name="Emma Weber", age=41))

    def test_json_object(self):
        answer = self.ask(model="json", messages=[{"role": "user", "content": PERSON}], response_format={"type": "json_object"})
        self.assertEqual(json.loads(answer.choices[0].message.content)["age"], 41)

    def test_tools(self):
        for choice in ("required", {"type": "function", "function": {"name": "save"}}):
            answer = self.ask(model="json", messages=[{"role": "user", "content": PERSON}], tools=[SAVE], tool_choice=choice)
            [call] = answer.choices[0].message.tool_calls
            self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("save", {"age": 41}))
        # The answer of the tool goes back as OpenAI's loop does it.
        follow = [{"role": "user", "content": PERSON}, answer.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "saved"}]
        self.assertEqual(len(self.ask(model="json", messages=follow, tools=[SAVE]).choices), 1)

    def test_custom_and_allowed_tools(self):
        date = {"type": "custom", "custom": {"name": "date", "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: YEAR "-" MONTH\nYEAR: /20[0-9]{2}/\nMONTH: /0[1-9]|1[0-2]/'}}}}
        asked = {"model": "dates", "messages": [{"role": "user", "content": "When?"}], "tools": [SAVE, date], "max_tokens": 60}
        for choice in ({"type": "custom", "custom": {"name": "date"}},
                       {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "custom", "custom": {"name": "date"}}]}}):
            answer = self.ask(**asked, tool_choice=choice)
            [call] = answer.choices[0].message.tool_calls
            self.assertEqual((call.type, call.custom.name), ("custom", "date"))
            self.assertRegex(call.custom.input, "^20[0-9]{2}-(0[1-9]|1[0-2])$")
            follow = [*asked["messages"], answer.choices[0].message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "ok"}]
            self.assertEqual(len(self.ask(**{**asked, "messages": follow}).choices), 1)
        only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "save"}}]}}
        [call] = self.ask(**asked, tool_choice=only).choices[0].message.tool_calls
        self.assertEqual(call.function.name, "save")

    def test_streamed_tools(self):
        with self.client.chat.completions.stream(model="json", messages=[{"role": "user", "content": PERSON}], temperature=0, tools=[SAVE], tool_choice="required") as stream:
            for _ in stream:
                pass
            [call] = stream.get_final_completion().choices[0].message.tool_calls
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("save", {"age": 41}))

    def test_completions(self):
        plain = self.client.completions.create(model="base", prompt=["Once upon a time", "The weather"], max_tokens=5, temperature=0, logprobs=1)
        self.assertEqual(len(plain.choices), 2)
        self.assertEqual(len(plain.choices[0].logprobs.token_logprobs), 5)
        text = "".join(c.choices[0].text for c in self.client.completions.create(model="base", prompt="Once upon a time", max_tokens=5, temperature=0, stream=True))
        self.assertEqual(text, plain.choices[0].text)
        scored = self.client.completions.create(model="sql", prompt=[[5, 6, 7]], max_tokens=0, echo=True, logprobs=1)
        self.assertEqual(len(scored.choices[0].logprobs.token_logprobs), 3)

    def test_embeddings(self):
        packed = self.client.embeddings.create(model="sql", input=["Hello", "there"])  # base64 on the wire
        plain = self.client.embeddings.create(model="sql", input=["Hello", "there"], encoding_format="float")
        for a, b in zip(packed.data, plain.data, strict=True):
            self.assertLess(max(abs(x - y) for x, y in zip(a.embedding, b.embedding, strict=True)), 1e-6)
        self.assertEqual(len(self.client.embeddings.create(model="sql", input="Hello", dimensions=32).data[0].embedding), 32)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["model", "dates", "json", "math", "sort", "sql", "tag"])
        self.assertEqual(self.client.models.retrieve("sql").id, "sql")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("nothing")

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.ask(model="nothing")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask(top_logprobs=50, logprobs=True)
        self.assertEqual((caught.exception.param, caught.exception.type), ("top_logprobs", "invalid_request_error"))
        with self.assertRaises(openai.BadRequestError):
            self.ask(messages=[{"role": "user", "content": "word " * 1000}])

    def test_timeout(self):
        with self.assertRaises(openai.APITimeoutError):
            self.client.with_options(timeout=0.05).completions.create(model="sql", prompt="x", max_tokens=500, n=16, extra_body={"ignore_eos": True})

    def test_raw_response(self):
        raw = self.client.chat.completions.with_raw_response.create(model="sql", messages=MESSAGES, temperature=0)
        self.assertEqual(raw.headers["x-adapter"], "sql@1")
        self.assertEqual(raw.parse()._request_id, raw.headers["x-request-id"])
        self.assertEqual(raw.parse().choices[0].message.content, SQL)


class WithKeys(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        cls.state = os.path.join(cls.dir.name, "state.db")
        cls.binary = os.path.abspath(BINARY)
        cls.keys("tenant", "set", "narrow", "--max-in-flight", "1")
        cls.infer, cls.narrow, cls.loader = (cls.keys("create", "--tenant", t, "--scope", s) for t, s in (("wide", "infer"), ("narrow", "infer"), ("wide", "adapters")))
        cls.server = running_server.start(BINARY, state=cls.state)
        cls.url = f"http://{cls.server.address}/v1"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(0)
        cls.dir.cleanup()

    @classmethod
    def keys(cls, *args: str) -> str:
        return subprocess.run([cls.binary, "keys", *args, "--state", cls.state], capture_output=True, text=True, check=True).stdout.strip()

    def client(self, key: str, retries: int = 0) -> OpenAI:
        client = OpenAI(base_url=self.url, api_key=key, max_retries=retries)
        self.addCleanup(client.close)
        return client

    def ask(self, client: OpenAI, **fields):
        return client.chat.completions.create(**{"model": "sql", "messages": MESSAGES, "temperature": 0, **fields})

    def test_keys(self):
        self.assertEqual(self.ask(self.client(self.infer)).choices[0].message.content, SQL)
        with self.assertRaises(openai.AuthenticationError) as caught:
            self.ask(self.client("sk-wrong"))
        self.assertEqual(caught.exception.code, "invalid_api_key")
        with self.assertRaises(openai.PermissionDeniedError):
            self.ask(self.client(self.loader))

    def test_rate_limit_and_retries(self):
        busy = self.ask(self.client(self.narrow), stream=True, max_tokens=450, extra_body={"ignore_eos": True})
        next(iter(busy))
        with self.assertRaises(openai.RateLimitError) as caught:
            self.ask(self.client(self.narrow))
        wait = int(caught.exception.response.headers["retry-after"])
        self.assertGreaterEqual(wait, 1)
        # The client itself tries again after that time, and then there is room.
        begin = time.monotonic()
        answer = self.ask_while(busy)
        self.assertEqual(answer.choices[0].message.content, SQL)
        self.assertGreaterEqual(time.monotonic() - begin, min(wait, 1) * 0.9)

    def ask_while(self, busy):
        timer = threading.Timer(0.3, busy.close)
        timer.start()
        try:
            return self.ask(self.client(self.narrow, retries=5))
        finally:
            timer.join()


try:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
except ImportError:
    ChatOpenAI = None


@unittest.skipIf(ChatOpenAI is None, "langchain-openai is not installed")
class LangChain(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running_server.start(BINARY)
        cls.options = {"base_url": f"http://{cls.server.address}/v1", "api_key": "unused"}

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(0)

    def test_chat(self):
        model = ChatOpenAI(model="sql", temperature=0, **self.options)
        self.assertEqual(model.invoke(RIGA).content, SQL)
        self.assertEqual("".join(chunk.content for chunk in model.stream(RIGA)), SQL)
        self.assertEqual([a.content for a in model.batch([RIGA, RIGA])], [SQL, SQL])

    def test_structured_output(self):
        model = ChatOpenAI(model="json", temperature=0, **self.options).with_structured_output(Person, method="json_schema")
        self.assertEqual(model.invoke(PERSON), Person(name="Emma Weber", age=41))

    def test_embeddings(self):
        vectors = OpenAIEmbeddings(model="sql", check_embedding_ctx_length=False, **self.options).embed_documents(["Hello", "there"])
        self.assertEqual([len(v) for v in vectors], [256, 256])


if __name__ == "__main__":
    for package in ("openai", "pydantic", "langchain-openai"):
        try:
            print(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            print(package, "is not installed")
    unittest.main(verbosity=1)
