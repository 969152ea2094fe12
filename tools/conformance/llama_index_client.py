#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""LlamaIndex against `lorikeet serve`: chat, streams, completions, structured answers and embeddings.

    pip install llama-index-llms-openai-like llama-index-embeddings-openai-like
    python tools/conformance/llama_index_client.py build/cpu-release/bin/lorikeet
"""
import asyncio
import importlib.metadata
import sys
import unittest

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

import running_server

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "build/cpu-release/bin/lorikeet"
RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"


class LlamaIndex(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        for package in ("llama-index-core", "llama-index-llms-openai-like", "llama-index-embeddings-openai-like", "openai"):
            print(package, importlib.metadata.version(package))
        cls.server = running_server.start(BINARY)
        cls.url = f"http://{cls.server.address}/v1"

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(0)

    def model(self, name="sql", chat=True, **fields):
        return OpenAILike(model=name, api_base=self.url, api_key="unused", is_chat_model=chat, context_window=512, temperature=0, max_retries=0, **fields)

    def test_chat(self):
        messages = [ChatMessage(role="user", content=RIGA)]
        self.assertEqual(self.model().chat(messages).message.content, SQL)
        pieces = [chunk.delta for chunk in self.model().stream_chat(messages)]
        self.assertEqual("".join(piece or "" for piece in pieces), SQL)
        self.assertGreater(len(pieces), 3)
        self.assertEqual(asyncio.run(self.model().achat(messages)).message.content, SQL)

    def test_completion(self):
        whole = self.model("base", chat=False, max_tokens=8).complete("Once upon a time").text
        self.assertEqual("".join(chunk.delta for chunk in self.model("base", chat=False, max_tokens=8).stream_complete("Once upon a time")), whole)

    def test_forced_call(self):
        def save(age: int) -> str:
            """Save an age."""
            return str(age)

        model = self.model("json", is_function_calling_model=True, max_tokens=100)
        answer = model.chat_with_tools([FunctionTool.from_defaults(save)], "He is 41.", tool_required=True)
        [call] = model.get_tool_calls_from_response(answer)
        self.assertEqual(call.tool_name, "save")
        self.assertIsInstance(call.tool_kwargs["age"], int)

    def test_embeddings(self):
        embedding = OpenAILikeEmbedding(model_name="sql", api_base=self.url, api_key="unused")
        one, two = embedding.get_text_embedding_batch(["a cat", "a dog"])
        self.assertEqual(len(one), len(two))
        self.assertEqual(embedding.get_text_embedding("a cat"), one)


if __name__ == "__main__":
    unittest.main()
