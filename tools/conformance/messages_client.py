#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The stock `anthropic` client against `lorikeet serve`.

    pip install anthropic
    python tools/conformance/messages_client.py build/cpu-release/bin/lorikeet
"""
import asyncio
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import unittest

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel

import running_server

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "build/cpu-release/bin/lorikeet"
RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
PERSON = "My friend Emma Weber works as a writer in Athens and is 41."
SAVE = {"name": "save", "description": "Saves an age.", "input_schema": {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 150}},
                                                                        "required": ["age"], "additionalProperties": False}}


class Person(BaseModel):
    name: str
    age: int


class Messages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.TemporaryDirectory()
        state = os.path.join(cls.dir.name, "state.db")
        make = [os.path.abspath(BINARY), "keys", "create", "--tenant", "acme", "--scope", "infer", "--state", state]
        cls.key = subprocess.run(make, capture_output=True, text=True, check=True).stdout.strip()
        cls.server = running_server.start(BINARY, "--tool-call-parser", "hermes", state=state)
        cls.url = f"http://{cls.server.address}"
        cls.client = Anthropic(base_url=cls.url, api_key=cls.key, max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.stop(0)
        cls.dir.cleanup()

    def fields(self, text=RIGA, **fields):
        # The client has no argument for it any more.
        return {"model": "sql", "max_tokens": 100, "messages": [{"role": "user", "content": text}], "extra_body": {"temperature": 0}, **fields}

    def ask(self, text=RIGA, **fields):
        return self.client.messages.create(**self.fields(text, **fields))

    def test_create(self):
        message = self.ask(metadata={"user_id": "u"})
        self.assertEqual((message.content[0].text, message.stop_reason, message.type), (SQL, "end_turn", "message"))
        counted = self.client.messages.count_tokens(model="sql", messages=[{"role": "user", "content": RIGA}])
        self.assertEqual(counted.input_tokens, message.usage.input_tokens + message.usage.cache_read_input_tokens)

    def test_conversation(self):
        first = self.ask(system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}])
        turns = [{"role": "user", "content": RIGA}, {"role": "assistant", "content": first.content}, {"role": "user", "content": [{"type": "text", "text": RIGA}]}]
        self.assertEqual(self.ask(messages=turns).role, "assistant")

    def test_prefill_and_stops(self):
        turns = [{"role": "user", "content": RIGA}, {"role": "assistant", "content": "SELECT *"}]
        self.assertEqual(self.ask(messages=turns).content[0].text, SQL.removeprefix("SELECT *"))
        stopped = self.ask(stop_sequences=[" WHERE"])
        self.assertEqual((stopped.content[0].text, stopped.stop_reason, stopped.stop_sequence), ("SELECT * FROM customers", "stop_sequence", " WHERE"))
        self.assertEqual(self.ask(max_tokens=3).stop_reason, "max_tokens")

    def test_stream(self):
        events = list(self.ask(stream=True))
        self.assertEqual("".join(e.delta.text for e in events if e.type == "content_block_delta"), SQL)
        self.assertEqual((events[0].type, events[-1].type), ("message_start", "message_stop"))

    def test_stream_helper(self):
        with self.client.messages.stream(**self.fields()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual((text, final.content[0].text, final.stop_reason), (SQL, SQL, "end_turn"))
        self.assertEqual(final.usage.output_tokens, self.ask().usage.output_tokens)

    def test_async(self):
        async def several():
            async with AsyncAnthropic(base_url=self.url, api_key=self.key) as client:
                messages = await asyncio.gather(*(client.messages.create(**self.fields()) for _ in range(8)))
                async with client.messages.stream(**self.fields()) as stream:
                    return messages, "".join([text async for text in stream.text_stream])
        messages, streamed = asyncio.run(several())
        self.assertEqual({message.content[0].text for message in messages}, {SQL})
        self.assertEqual(streamed, SQL)

    def test_tools(self):
        for choice in ({"type": "any"}, {"type": "tool", "name": "save"}):
            message = self.ask(PERSON, model="json", tools=[SAVE], tool_choice=choice)
            [use] = message.content
            self.assertEqual((use.type, use.name, use.input, message.stop_reason), ("tool_use", "save", {"age": 41}, "tool_use"))
        turns = [{"role": "user", "content": PERSON}, {"role": "assistant", "content": message.content},
                 {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "saved"}]}]
        self.assertEqual(self.ask(model="json", messages=turns, tools=[SAVE]).type, "message")

    def test_streamed_tools(self):
        with self.client.messages.stream(**self.fields(PERSON, model="json", tools=[SAVE], tool_choice={"type": "any"})) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "input_json"]
            [use] = stream.get_final_message().content
        self.assertEqual((snapshots[-1], use.input), ({"age": 41}, {"age": 41}))

    def test_structured_output(self):
        fields = self.fields(PERSON, model="json")
        self.assertEqual(self.client.messages.parse(**fields, output_format=Person).parsed_output, Person(name="Emma Weber", age=41))

    def test_errors(self):
        for error, key, fields in ((anthropic.NotFoundError, self.key, {"model": "nothing"}), (anthropic.BadRequestError, self.key, {"extra_body": {"top_p": 3}}),
                                   (anthropic.AuthenticationError, "sk-ant-wrong", {}), (anthropic.BadRequestError, self.key, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]})):
            with Anthropic(base_url=self.url, api_key=key, max_retries=0) as client, self.assertRaises(error) as caught:
                client.messages.create(**self.fields(**fields))
            self.assertEqual(caught.exception.body["type"], "error")
        with self.assertRaises(anthropic.BadRequestError):
            self.ask("word " * 1000)

    def test_raw_response(self):
        raw = self.client.messages.with_raw_response.create(**self.fields())
        self.assertEqual(raw.headers["x-adapter"], "sql@1")
        self.assertEqual((raw.request_id, raw.parse()._request_id), (raw.headers["x-request-id"],) * 2)


if __name__ == "__main__":
    for package in ("anthropic", "pydantic"):
        print(package, importlib.metadata.version(package))
    unittest.main(verbosity=1)
