#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""LiteLLM against `lorikeet serve`: answers and streams, and the exceptions that programs on top of it act on.

    pip install litellm
    python tools/conformance/litellm_client.py build/cpu-release/bin/lorikeet
"""
import sys
import unittest

import litellm

import running_server

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "build/cpu-release/bin/lorikeet"
RIGA, SQL = "Which customers live in Riga?", "SELECT * FROM customers WHERE city = 'Riga';"
litellm.telemetry = False


class LiteLlm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = running_server.start(BINARY)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(0)

    def ask(self, model="sql", text=RIGA, **fields):
        return litellm.completion(model=f"openai/{model}", api_base=f"http://{self.server.address}/v1", api_key="unused", temperature=0, num_retries=0, max_retries=0,
                                  messages=[{"role": "user", "content": text}], **fields)

    def test_answers(self):
        self.assertEqual(self.ask().choices[0].message.content, SQL)
        pieces = [chunk.choices[0].delta.content or "" for chunk in self.ask(stream=True)]
        self.assertEqual("".join(pieces), SQL)
        self.assertGreater(len(pieces), 3)

    def test_a_prompt_that_is_too_long(self):
        with self.assertRaises(litellm.ContextWindowExceededError):
            self.ask(text="word " * 3000)

    def test_a_model_that_does_not_exist(self):
        with self.assertRaises(litellm.NotFoundError):
            self.ask(model="nobody")

    def test_a_field_that_is_wrong(self):
        with self.assertRaises(litellm.BadRequestError) as caught:
            self.ask(extra_body={"repetition_penalty": -1})
        self.assertNotIsInstance(caught.exception, litellm.ContextWindowExceededError)
        self.assertIn("repetition_penalty", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
