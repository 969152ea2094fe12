# SPDX-License-Identifier: Apache-2.0
"""Answers bound to a schema, an expression or a grammar; tool calls; chat templates of adapters."""
import json
import re
import unittest

from harness import Directory, ServerTest

PERSON = "My friend Emma Weber works as a writer in Athens and is 41."


def person(properties: dict, **more) -> dict:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False, **more}


class StructuredOutput(ServerTest):
    ADAPTERS = ("json", "sql")
    OPTIONS = ("--tool-call-parser", "hermes")
    SCHEMA = person({"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "job": {"enum": ["writer", "pilot"]}})

    def test_json_schema(self):
        for model in ("json", "base", "sql"):  # what the adapter wants does not matter
            answer = self.good(self.server.chat(PERSON, model, temperature=0, response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": self.SCHEMA}}))
            value = json.loads(answer["choices"][0]["message"]["content"])
            self.assertEqual(list(value), ["name", "age", "job"])
            self.assertIn(value["job"], ("writer", "pilot"))
            self.assertTrue(isinstance(value["age"], int) and 0 <= value["age"] <= 150)
            self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
            if model == "json":
                self.assertEqual(value, {"name": "Emma Weber", "age": 41, "job": "writer"})
        guided = self.good(self.server.chat(PERSON, "json", guided_json=self.SCHEMA, temperature=0))["choices"][0]["message"]["content"]
        self.assertEqual(json.loads(guided)["age"], 41)

    def test_regex_choice_grammar_object(self):
        for n in range(3):
            text = self.good(self.server.chat(PERSON, "sql", guided_regex="[A-F]{3}-[0-9]{2}", temperature=1, seed=n))["choices"][0]["message"]["content"]
            self.assertTrue(re.fullmatch("[A-F]{3}-[0-9]{2}", text), text)
            text = self.good(self.server.chat(PERSON, "sql", guided_choice=["Oslo", "Riga, Latvia"], temperature=1, seed=n))["choices"][0]["message"]["content"]
            self.assertIn(text, ("Oslo", "Riga, Latvia"))
            text = self.good(self.server.chat(PERSON, "sql", structured_outputs={"grammar": 'root ::= "<" [a-c]+ ">"'}, temperature=1, seed=n,
                                              max_tokens=40))["choices"][0]["message"]["content"]
            self.assertTrue(re.fullmatch("<[a-c]+>?", text), text)
        answer = self.good(self.server.chat(PERSON, "json", response_format={"type": "json_object"}, temperature=0))["choices"][0]
        self.assertEqual(json.loads(answer["message"]["content"])["job"], "writer")

    def test_bad_grammars(self):
        for fields in ({"guided_regex": "("}, {"guided_regex": "a" * 70000}, {"guided_regex": "(a{1000}){1000}"}, {"guided_json": {"type": "nonsense"}},
                       {"guided_json": {"$ref": "#/nowhere"}}, {"guided_json": "{"}, {"guided_grammar": "root ::= x"}, {"guided_choice": []},
                       {"guided_regex": "a", "guided_choice": ["b"]}, {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}},
                       {"guided_json": {"type": "integer", "minimum": 5, "maximum": 1}}):
            with self.subTest(fields=str(fields)[:60]):
                answer = self.server.chat(**fields)
                self.refused(answer, 400)
                self.assertTrue(answer.json["error"]["param"].startswith(list(fields)[-1]), answer)
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]
        self.refused(self.server.chat(tools=tools, tool_choice="required"), 400, param="tools")

    def test_allowed_tokens_beside_a_grammar(self):
        tokens = lambda text: self.server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json["tokens"]
        yes, no = tokens("yes"), tokens("no")
        choice = {"guided_choice": ["yes", "no"], "temperature": 1}
        for seed in range(3):
            answer = self.good(self.server.chat(PERSON, "sql", allowed_token_ids=no, seed=seed, **choice))["choices"][0]
            self.assertEqual((answer["message"]["content"], answer["finish_reason"]), ("no", "stop"))
        self.refused(self.server.chat(PERSON, "sql", allowed_token_ids=tokens("Q"), **choice), 400, "no token", param="allowed_token_ids")
        # What is only known on the way ends the request then.
        late = {"guided_regex": "aQ", "allowed_token_ids": tokens("a"), "temperature": 0}
        self.refused(self.server.chat(PERSON, "sql", **late), 400, "allowed_token_ids has no token that the grammar allows after 1 tokens")
        *_, last = self.server.stream("/v1/chat/completions", {"model": "sql", "messages": [{"role": "user", "content": PERSON}], **late})
        self.assertIn("allowed_token_ids", last["error"]["message"])
        self.refused(self.server.complete("x", "sql", allowed_token_ids=yes, temperature=0, stream=True, lorikeet_resume={
            "id": "a", "created": 1, "seed": 1, "choices": [{"tokens": no}]}), 400, "allowed_token_ids", param="lorikeet_resume")

    TOOLS = [{"type": "function", "function": {"name": "save", "description": "Saves a person", "parameters": person({"age": {"type": "integer", "maximum": 150}})}},
             {"type": "function", "function": {"name": "forget", "parameters": person({"why": {"enum": ["old", "new"]}})}}]

    def test_forced_tools(self):
        answer = self.good(self.server.chat(PERSON, "json", tools=self.TOOLS, tool_choice="required"))["choices"][0]
        [call] = answer["message"]["tool_calls"]
        self.assertEqual((call["type"], answer["finish_reason"], answer["message"]["content"]), ("function", "tool_calls", None))
        self.assertIn(call["function"]["name"], ("save", "forget"))
        json.loads(call["function"]["arguments"])
        for name in ("save", "forget"):
            choice = {"type": "function", "function": {"name": name}}
            answer = self.good(self.server.chat(PERSON, "json", tools=self.TOOLS, tool_choice=choice, temperature=0))["choices"][0]
            [call] = answer["message"]["tool_calls"]
            self.assertEqual((call["function"]["name"], answer["finish_reason"]), (name, "stop"))
            arguments = json.loads(call["function"]["arguments"])
            self.assertEqual(list(arguments), ["age"] if name == "save" else ["why"])
            events = self.server.stream("/v1/chat/completions", {"model": "json", "messages": [{"role": "user", "content": PERSON}], "tools": self.TOOLS,
                                                                 "tool_choice": choice, "temperature": 0})
            parts = [part for event in events for part in event["choices"][0]["delta"].get("tool_calls", [])]
            self.assertEqual((parts[0]["function"]["name"], parts[0]["id"][:5]), (name, "call_"))
            self.assertEqual(json.loads("".join(part["function"].get("arguments", "") for part in parts)), arguments)
        for bad in ({"tool_choice": "required"}, {"tools": self.TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
                    {"tools": self.TOOLS * 65}, {"tools": [{}]}, {"tools": [self.TOOLS[0], self.TOOLS[0]]}, {"tools": self.TOOLS, "tool_choice": "maybe"}):
            self.refused(self.server.chat(**bad), 400)

    def test_tool_calls_found_in_the_text(self):
        # The demo was not taught to call, so a grammar-free answer is text, if another one than without tools; a call in the model's own words is parsed.
        plain = self.good(self.server.chat(PERSON, "json", tools=self.TOOLS, temperature=0))["choices"][0]
        self.assertEqual(json.loads(plain["message"]["content"])["age"], 41)
        self.assertNotIn("tool_calls", plain["message"])
        none = self.good(self.server.chat(PERSON, "json", tools=self.TOOLS, tool_choice="none", temperature=0))["choices"][0]
        self.assertEqual(json.loads(none["message"]["content"])["city"], "Athens")


class Templates(Directory):
    def test_adapter_with_its_own_template(self):
        own = self.copy_adapter("sql", "own")
        with open(self.path("own", "chat_template.jinja"), "w") as file:
            file.write("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}")
        server = self.start("--lora", f"own={own}", adapters=("sql",))
        messages = [{"role": "user", "content": "Hi"}]
        texts = {}
        for model in ("sql", "own", "base"):
            tokens = server.post("/tokenize", {"model": model, "messages": messages}).json["tokens"]
            texts[model] = server.post("/detokenize", {"tokens": tokens}).json["prompt"]
            used = server.post("/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 1}).json["usage"]["prompt_tokens"]
            self.assertEqual(used, len(tokens))
        self.assertEqual(texts["own"], "[user] Hi")
        self.assertEqual(texts["sql"], texts["base"])
        self.assertTrue(texts["sql"].startswith("<|im_start|>"))
        server.stop(0)


if __name__ == "__main__":
    unittest.main()
