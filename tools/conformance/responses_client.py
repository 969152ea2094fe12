#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The Responses API of the stock `openai` client against `lorikeet serve`.

    pip install -r tools/conformance/requirements.txt     # its first part
    python tools/conformance/responses_client.py build/cpu-release/bin/lorikeet
"""
import asyncio
import importlib.metadata
import json
import sys
import unittest

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

import running_server

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "build/cpu-release/bin/lorikeet"
RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
PERSON = "My friend Emma Weber works as a writer in Athens and is 41."
SAVE = {"type": "function", "name": "save", "parameters": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
                                                           "required": ["age"], "additionalProperties": False}, "strict": True}


class Person(BaseModel):
    name: str
    age: int


class Responses(unittest.TestCase):
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
        return self.client.responses.create(**{"model": "sql", "input": RIGA, "temperature": 0, **fields})

    def test_create(self):
        answer = self.ask(store=False, metadata={"a": "b"})
        self.assertEqual((answer.output_text, answer.status, answer.metadata), (SQL, "completed", {"a": "b"}))
        self.assertEqual(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)
        chat = self.client.chat.completions.create(model="sql", messages=[{"role": "user", "content": RIGA}], temperature=0)
        self.assertEqual(chat.usage.total_tokens, answer.usage.total_tokens)

    def test_conversation(self):
        first = self.ask(instructions="Be short.")
        again = self.ask(input=[{"role": "user", "content": RIGA}, *first.output, {"role": "user", "content": [{"type": "input_text", "text": RIGA}]}])
        self.assertEqual(again.status, "completed")
        self.assertGreater(again.usage.input_tokens, first.usage.input_tokens)

    def test_stream(self):
        events = list(self.ask(stream=True))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), SQL)
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        self.assertEqual(events[-1].response.output_text, SQL)

    def test_stream_helper(self):
        with self.client.responses.stream(model="sql", input=RIGA, temperature=0) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
        self.assertEqual((snapshots[-1], final.output_text), (SQL, SQL))

    def test_async(self):
        async def several():
            async with AsyncOpenAI(base_url=self.url, api_key="unused") as client:
                answers = await asyncio.gather(*(client.responses.create(model="sql", input=RIGA, temperature=0) for _ in range(8)))
                stream = await client.responses.create(model="sql", input=RIGA, temperature=0, stream=True)
                return answers, "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        answers, streamed = asyncio.run(several())
        self.assertEqual({answer.output_text for answer in answers}, {SQL})
        self.assertEqual(streamed, SQL)

    def test_parse(self):
        answer = self.client.responses.parse(model="json", input=PERSON, temperature=0, text_format=Person)
        self.assertEqual(answer.output_parsed, Person(name="Emma Weber", age=41))
        with self.client.responses.stream(model="json", input=PERSON, temperature=0, text_format=Person) as stream:
            for _ in stream:
                pass
            self.assertEqual(stream.get_final_response().output_parsed, Person(name="Emma Weber", age=41))

    def test_json_object(self):
        answer = self.ask(model="json", input=PERSON, text={"format": {"type": "json_object"}})
        self.assertEqual(json.loads(answer.output_text)["age"], 41)

    def test_tools(self):
        for choice in ("required", {"type": "function", "name": "save"}):
            answer = self.ask(model="json", input=PERSON, tools=[SAVE], tool_choice=choice)
            [call] = [item for item in answer.output if item.type == "function_call"]
            self.assertEqual((call.name, json.loads(call.arguments)), ("save", {"age": 41}))
        follow = [{"role": "user", "content": PERSON}, *answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "saved"}]
        self.assertEqual(self.ask(model="json", input=follow, tools=[SAVE]).object, "response")

    def test_streamed_tools(self):
        with self.client.responses.stream(model="json", input=PERSON, temperature=0, tools=[SAVE], tool_choice="required") as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
            [call] = stream.get_final_response().output
        self.assertEqual((json.loads(snapshots[-1]), json.loads(call.arguments)), ({"age": 41}, {"age": 41}))

    def test_incomplete(self):
        answer = self.ask(max_output_tokens=3)
        self.assertEqual((answer.status, answer.incomplete_details.reason, answer.usage.output_tokens), ("incomplete", "max_output_tokens", 3))
        self.assertEqual(list(self.ask(max_output_tokens=3, stream=True))[-1].type, "response.incomplete")

    def test_logprobs(self):
        [message] = self.ask(include=["message.output_text.logprobs"], top_logprobs=2).output
        tokens = message.content[0].logprobs
        self.assertEqual("".join(t.token for t in tokens), SQL + "<|im_end|>")
        self.assertTrue(all(t.top_logprobs[0].logprob == t.logprob for t in tokens))

    def test_errors(self):
        for fields, param in (({"store": True}, "store"), ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"background": True}, "background"),
                              ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,", "detail": "auto"}]}]}, "input[0].content[0].type")):
            with self.assertRaises(openai.BadRequestError) as caught:
                self.ask(**fields)
            self.assertEqual(caught.exception.param, param)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.ask(model="nothing")
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        for call in (self.client.responses.retrieve, self.client.responses.delete, self.client.responses.cancel):
            with self.assertRaises(openai.NotFoundError):
                call("resp_1")


if __name__ == "__main__":
    for package in ("openai", "pydantic"):
        print(package, importlib.metadata.version(package))
    unittest.main(verbosity=1)
