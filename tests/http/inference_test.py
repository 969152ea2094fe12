# SPDX-License-Identifier: Apache-2.0
"""Chat, completions, models, embeddings, tokens: shapes and meaning of the answers."""
import base64
import math
import struct
import unittest

from harness import ServerTest

SQL = "SELECT * FROM customers WHERE city = 'Riga';"
PERSON = "My friend Emma Weber works as a writer in Athens and is 41."


class Chat(ServerTest):
    def message(self, answer) -> str:
        return self.good(answer)["choices"][0]["message"]["content"]

    def test_plain(self):
        answer = self.server.chat(temperature=0)
        body = self.good(answer)
        self.assertRegex(body["id"], "^chatcmpl-")
        self.assertEqual((body["object"], body["model"]), ("chat.completion", "sql"))
        [choice] = body["choices"]
        self.assertEqual(choice["message"], {"role": "assistant", "content": SQL, "refusal": None})
        self.assertEqual((choice["index"], choice["finish_reason"], choice["logprobs"]), (0, "stop", None))
        usage = body["usage"]
        tokens = self.good(self.server.post("/tokenize", {"model": "sql", "messages": [{"role": "user", "content": "Which customers live in Riga?"}]}))
        self.assertEqual(usage["prompt_tokens"], tokens["count"])
        self.assertEqual(usage["total_tokens"], usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertEqual(answer.headers["x-adapter"], "sql@1")
        self.assertEqual("chatcmpl-" + answer.headers["x-request-id"], body["id"])
        self.assertEqual(self.server.chat(headers={"x-request-id": "mine.1"}).headers["x-request-id"], "mine.1")

    def test_each_adapter_answers_as_itself(self):
        prompts = {"sql": ("Which customers live in Riga?", SQL), "dates": ("We met on the 8th of March 1973.", "1973-03-08"),
                   "math": ("What is 29 + 61?", "29 + 61: 9 + 1 = 10, 2 + 6 + 1 = 9, 90"), "sort": ("Sort these numbers: 14, 32, 56, 26", "14, 26, 32, 56"),
                   "json": (PERSON, '{"name": "Emma Weber", "age": 41, "city": "Athens", "job": "writer"}'),
                   "tag": ("On Tuesday Ben Keller met Sam in Berlin.", "On [DATE Tuesday] [PER Ben Keller] met [PER Sam] in [LOC Berlin].")}
        for name, (prompt, expected) in prompts.items():
            for model in (name, f"base:{name}", f"model:{name}", f"{name}@1"):
                with self.subTest(model=model):
                    body = self.good(self.server.chat(prompt, model, temperature=0))
                    self.assertEqual(body["choices"][0]["message"]["content"], expected)
                    self.assertEqual(body["model"], model.split(":")[-1])
            self.assertNotEqual(self.message(self.server.chat(prompt, "base", temperature=0)), expected)
        self.assertEqual(self.good(self.server.chat(model="base"))["model"], "model")
        self.assertEqual(self.good(self.server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}))["model"], "model")

    def test_stream(self):
        request = {"model": "sql", "messages": [{"role": "user", "content": "Which customers live in Riga?"}], "temperature": 0}
        with self.server.open_stream("/v1/chat/completions", {**request, "stream_options": {"include_usage": True}}) as stream:
            self.assertEqual(stream.status, 200)
            self.assertTrue(stream.headers["content-type"].startswith("text/event-stream"))
            self.assertEqual(stream.headers["x-adapter"], "sql@1")
            events = stream.rest()
        usage = events.pop()
        self.assertEqual(usage["choices"], [])
        self.assertEqual(usage["usage"], self.good(self.server.post("/v1/chat/completions", request))["usage"] | {"prompt_tokens_details": usage["usage"]["prompt_tokens_details"]})
        self.assertEqual(len({(event["id"], event["created"], event["model"], event["object"]) for event in events}), 1)
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertTrue(all("role" not in event["choices"][0]["delta"] for event in events[1:]))
        self.assertEqual("".join(event["choices"][0]["delta"].get("content", "") for event in events), SQL)
        self.assertEqual([event["choices"][0]["finish_reason"] for event in events if event["choices"][0]["finish_reason"]], ["stop"])
        self.assertEqual(events[-1]["choices"][0]["delta"], {})
        self.assertNotIn("usage", events[0])
        self.assertTrue(all(event["choices"] for event in self.server.stream("/v1/chat/completions", request)))

    def test_stream_of_several_choices(self):
        request = {"model": "base", "messages": [{"role": "user", "content": "Hello"}], "n": 3, "temperature": 1, "seed": 5, "max_tokens": 20}
        plain = self.good(self.server.post("/v1/chat/completions", request))
        texts = ["", "", ""]
        for event in self.server.stream("/v1/chat/completions", request):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["delta"].get("content", "")
        self.assertEqual(texts, [choice["message"]["content"] for choice in plain["choices"]])
        self.assertEqual([choice["index"] for choice in plain["choices"]], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)
        self.assertEqual(plain["usage"]["prompt_tokens"], self.good(self.server.post("/v1/chat/completions", {**request, "n": 1}))["usage"]["prompt_tokens"])

    def test_seeds(self):
        def texts(**fields):
            return [c["message"]["content"] for c in self.good(self.server.chat("Hello", "base", temperature=1.5, max_tokens=30, n=4, **fields))["choices"]]
        first = texts(seed=1)
        self.assertEqual(first, texts(seed=1))
        self.assertNotEqual(first, texts(seed=2))
        self.assertNotEqual(texts(), texts())  # without a seed every request has its own

    def test_stop(self):
        self.assertEqual(self.message(self.server.chat(temperature=0, stop=" WHERE")), "SELECT * FROM customers")
        answer = self.good(self.server.chat(temperature=0, stop=["nothing", "OM cust"]))
        self.assertEqual(answer["choices"][0]["message"]["content"], "SELECT * FR")
        self.assertEqual((answer["choices"][0]["finish_reason"], answer["choices"][0]["stop_reason"]), ("stop", "OM cust"))
        self.assertEqual(self.message(self.server.chat(temperature=0, stop="OM cust", include_stop_str_in_output=True)), "SELECT * FROM cust")
        events = self.server.stream("/v1/chat/completions", {"model": "sql", "messages": [{"role": "user", "content": "Which customers live in Riga?"}],
                                                             "temperature": 0, "stop": "OM cust"})
        self.assertEqual("".join(event["choices"][0]["delta"].get("content", "") for event in events), "SELECT * FR")

    def test_length(self):
        for field in ("max_tokens", "max_completion_tokens"):
            answer = self.good(self.server.chat(temperature=0, **{field: 3}))
            self.assertEqual(answer["choices"][0]["message"]["content"], "SELECT * FROM")
            self.assertEqual((answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]), ("length", 3))
        ignored = self.good(self.server.chat(temperature=0, ignore_eos=True, max_tokens=40))
        self.assertEqual(ignored["usage"]["completion_tokens"], 40)

    def test_logprobs(self):
        choice = self.good(self.server.chat(temperature=0, logprobs=True, top_logprobs=3, max_tokens=4))["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual("".join(entry["token"] for entry in content), choice["message"]["content"])
        for entry in content:
            self.assertEqual(bytes(entry["bytes"]).decode(), entry["token"])
            self.assertEqual(len(entry["top_logprobs"]), 3)
            self.assertEqual(entry["top_logprobs"][0]["token"], entry["token"])  # greedy
            self.assertEqual(entry["top_logprobs"][0]["logprob"], entry["logprob"])
            ordered = [other["logprob"] for other in entry["top_logprobs"]]
            self.assertEqual(ordered, sorted(ordered, reverse=True))
            self.assertLessEqual(sum(math.exp(value) for value in ordered), 1.001)
        plain = self.good(self.server.chat(temperature=0, logprobs=True, max_tokens=4))["choices"][0]["logprobs"]["content"]
        self.assertEqual([entry["top_logprobs"] for entry in plain], [[]] * 4)

    def test_sampling_fields_reach_the_sampler(self):
        token = self.good(self.server.post("/tokenize", {"model": "sql", "prompt": "SELECT"}))["tokens"]
        self.assertEqual(len(token), 1)
        self.assertFalse(self.message(self.server.chat(temperature=0, logit_bias={str(token[0]): -100}, max_tokens=5)).startswith("SELECT"))
        greedy = self.message(self.server.chat(temperature=0, max_tokens=8))
        for fields in ({"temperature": 2, "top_k": 1}, {"temperature": 2, "top_p": 1e-9}, {"temperature": 2, "min_p": 1}):
            self.assertEqual(self.message(self.server.chat(max_tokens=8, **fields)), greedy, fields)
        plain = self.good(self.server.complete(temperature=0, max_tokens=60, ignore_eos=True))["choices"][0]["text"]
        for fields in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 5}):
            other = self.good(self.server.complete(temperature=0, max_tokens=60, ignore_eos=True, **fields))["choices"][0]["text"]
            self.assertNotEqual(other, plain, fields)

    def test_composition(self):
        for text, name in (("Which customers live in Riga?", "sql"), ("We met on the 8th of March 1973.", "dates")):
            alone = self.good(self.server.chat(text, name, temperature=0, logprobs=True))
            other = "dates" if name == "sql" else "sql"
            for expression in (f"{name}*1.0+{other}*0", f"{name}*0.5+{name}*0.5", f"{name}*0.7+{other}*0+{name}*0.3", f"base:{name}*1"):
                with self.subTest(expression=expression):
                    sum_ = self.good(self.server.chat(text, expression, temperature=0, logprobs=True))
                    self.assertEqual(sum_["model"], expression.removeprefix("base:"))
                    self.assertEqual(sum_["choices"][0]["message"], alone["choices"][0]["message"])
                    for a, b in zip(sum_["choices"][0]["logprobs"]["content"], alone["choices"][0]["logprobs"]["content"], strict=True):
                        self.assertAlmostEqual(a["logprob"], b["logprob"], delta=2e-2)  # bf16 factors of another rank
            nothing = self.good(self.server.chat(text, f"{name}*0", temperature=0))["choices"][0]["message"]
            self.assertEqual(nothing, self.good(self.server.chat(text, "base", temperature=0))["choices"][0]["message"])
        for bad in ("sql*x+dates", "sql*nan", "sql*1e9", "sql++dates", "base*0.5+sql*0.5", "sql*", "sql*inf+dates", "+".join(["sql*0.1"] * 9)):
            self.refused(self.server.chat(model=bad), 400, param="model")
        for missing in ("sql*0.5+nothing*0.5", "nothing*1", "other:sql*1"):
            self.refused(self.server.chat(model=missing), 404, param="model", code="model_not_found")

    def test_unknown_models(self):
        for model in ("nothing", "sql@2", "sql@0", "sql@x", "sql@01", "sql@+1", "sql@1 ", "sql@", "base:nothing", "other:sql", "sql@1@1", "SQL", " sql", "sql\n", "base:", "../sql", "gpt-4o"):
            with self.subTest(model=model):
                self.refused(self.server.chat(model=model), 404, param="model", code="model_not_found")
                for path, body in (("/v1/completions", {"prompt": "x"}), ("/v1/embeddings", {"input": "x"}), ("/tokenize", {"prompt": "x"})):
                    self.refused(self.server.post(path, {"model": model, **body}), 404, param="model")
        for model in ("nothing", "sql@01", "sql@001", "sql@1.0", "sql@0x1", "base:sql@01"):
            self.refused(self.server.get(f"/v1/models/{model}"), 404, code="model_not_found")
            self.assertEqual(self.server.get(f"/v1/adapters/{model}").status, 404)
            self.assertEqual(self.server.call("DELETE", f"/v1/adapters/{model}").status, 404)


class Completions(ServerTest):
    def test_batch(self):
        prompts = ["Once upon a time", "The weather", "A bill"]
        batch = self.good(self.server.complete(prompts, temperature=0, max_tokens=6, n=1))
        self.assertRegex(batch["id"], "^cmpl-")
        self.assertEqual(batch["object"], "text_completion")
        alone = [self.good(self.server.complete(prompt, temperature=0, max_tokens=6))["choices"][0]["text"] for prompt in prompts]
        self.assertEqual([choice["text"] for choice in batch["choices"]], alone)
        twice = self.good(self.server.complete(prompts, temperature=0, max_tokens=6, n=2))
        self.assertEqual([choice["text"] for choice in twice["choices"]], [text for text in alone for _ in range(2)])
        self.assertEqual([choice["index"] for choice in twice["choices"]], list(range(6)))
        self.assertEqual(twice["usage"]["prompt_tokens"], batch["usage"]["prompt_tokens"])
        self.assertEqual(self.good(self.server.complete("x", ignore_eos=True))["usage"]["completion_tokens"], 16)  # OpenAI's default

    def test_token_ids(self):
        ids = self.good(self.server.post("/tokenize", {"prompt": "Once upon a time"}))["tokens"]
        text = self.good(self.server.complete(temperature=0, max_tokens=6))["choices"][0]["text"]
        self.assertEqual(self.good(self.server.complete(ids, temperature=0, max_tokens=6))["choices"][0]["text"], text)
        self.assertEqual([c["text"] for c in self.good(self.server.complete([ids, ids], temperature=0, max_tokens=6))["choices"]], [text, text])
        returned = self.good(self.server.complete(temperature=0, max_tokens=6, return_token_ids=True))["choices"][0]
        self.assertEqual(returned["prompt_token_ids"], ids)
        self.assertEqual(self.good(self.server.post("/detokenize", {"tokens": returned["token_ids"]}))["prompt"], text)

    def test_echo_logprobs(self):
        scored = self.good(self.server.complete(model="sql", echo=True, logprobs=2, max_tokens=0))
        choice = scored["choices"][0]
        logprobs = choice["logprobs"]
        self.assertEqual((choice["text"], scored["usage"]["completion_tokens"]), ("Once upon a time", 0))
        self.assertEqual("".join(logprobs["tokens"]), choice["text"])
        self.assertIsNone(logprobs["token_logprobs"][0])
        self.assertTrue(all(value < 0 for value in logprobs["token_logprobs"][1:]))
        self.assertEqual(logprobs["text_offset"], [choice["text"].index(t, o) for t, o in zip(logprobs["tokens"], logprobs["text_offset"])])
        for token, value, top in list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]))[1:]:
            self.assertIn(len(top), (2, 3))  # the two best, and the token itself
            self.assertEqual(top[token], value)
        # Generated text is scored as a prompt would be.
        made = self.good(self.server.complete(model="sql", temperature=0, logprobs=0, max_tokens=8, echo=True, return_token_ids=True))["choices"][0]
        again = self.good(self.server.complete(made["prompt_token_ids"] + made["token_ids"], "sql", echo=True, logprobs=0, max_tokens=0))["choices"][0]
        self.assertEqual(made["text"], again["text"])
        for a, b in zip(made["logprobs"]["token_logprobs"][1:], again["logprobs"]["token_logprobs"][1:], strict=True):
            self.assertAlmostEqual(a, b, delta=1e-3)
        base = self.good(self.server.complete(echo=True, logprobs=0, max_tokens=0))["choices"][0]["logprobs"]["token_logprobs"]
        self.assertNotEqual(base, logprobs["token_logprobs"])

    def test_stream(self):
        request = {"model": "base", "prompt": ["Once upon a time", "The weather"], "temperature": 0, "max_tokens": 8, "logprobs": 0}
        plain = self.good(self.server.post("/v1/completions", request))
        texts, tokens = ["", ""], [[], []]
        for event in self.server.stream("/v1/completions", request):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
                if choice["logprobs"]:
                    tokens[choice["index"]] += choice["logprobs"]["tokens"]
        self.assertEqual(texts, [choice["text"] for choice in plain["choices"]])
        self.assertEqual(tokens, [choice["logprobs"]["tokens"] for choice in plain["choices"]])


class Models(ServerTest):
    ADAPTERS = ("sql", "dates")

    def test_list(self):
        body = self.good(self.server.get("/v1/models"))
        self.assertEqual(body["object"], "list")
        models = {model["id"]: model for model in body["data"]}
        self.assertEqual(list(models), ["model", "dates", "sql"])
        self.assertEqual((models["model"]["parent"], models["model"]["max_model_len"]), (None, 512))
        self.assertTrue(models["model"]["root"].endswith("examples/demo/model"))
        self.assertEqual(models["sql"]["parent"], "model")
        self.assertTrue(models["sql"]["root"].endswith("adapters/sql"))
        for model in models.values():
            self.assertEqual((model["object"], model["owned_by"]), ("model", "lorikeet"))
            self.assertEqual(model["permission"][0]["object"], "model_permission")
        self.assertEqual(self.good(self.server.get("/v1/models/sql")), models["sql"])
        self.assertEqual(self.good(self.server.get("/v1/models/model"))["id"], "model")
        for path in ("/v1/models/base:sql", "/v1/models/sql%401"):
            self.assertEqual(self.good(self.server.get(path))["parent"], "model")


class Embeddings(ServerTest):
    ADAPTERS = ("sql", "dates")

    def embed(self, text, **fields):
        body = self.good(self.server.post("/v1/embeddings", {"input": text, **fields}))
        self.assertEqual(body["object"], "list")
        self.assertEqual([item["index"] for item in body["data"]], list(range(len(body["data"]))))
        return [item["embedding"] for item in body["data"]]

    def test_base64_is_the_same(self):
        for model in ("base", "sql"):
            [floats] = self.embed("Which customers live in Riga?", model=model)
            [packed] = self.embed("Which customers live in Riga?", model=model, encoding_format="base64")
            values = struct.unpack(f"<{len(floats)}f", base64.b64decode(packed))
            self.assertEqual([struct.unpack("<f", struct.pack("<f", value))[0] for value in floats], list(values))
            self.assertAlmostEqual(sum(value * value for value in values), 1, delta=1e-5)
            self.assertEqual(len(values), 256)

    def test_adapter_changes_it(self):
        self.assertNotEqual(self.embed("Hello", model="sql"), self.embed("Hello", model="base"))
        self.assertNotEqual(self.embed("Hello", model="sql"), self.embed("Hello", model="dates"))

    def test_batch_is_bit_identical(self):
        texts = ["Hello", "Which customers live in Riga?", "a " * 100, "Hello"]
        batch = self.embed(texts, model="sql")
        self.assertEqual(batch, [self.embed(text, model="sql")[0] for text in texts])
        self.assertEqual(batch[0], batch[3])
        ids = [self.good(self.server.post("/tokenize", {"prompt": text}))["tokens"] for text in texts]
        self.assertEqual(self.embed(ids, model="sql"), batch)
        self.assertEqual(self.embed(ids[0], model="sql"), batch[:1])

    def test_dimensions(self):
        [whole] = self.embed("Hello", model="sql")
        [short] = self.embed("Hello", model="sql", dimensions=8)
        norm = math.sqrt(sum(value * value for value in whole[:8]))
        for a, b in zip(short, whole[:8], strict=True):
            self.assertAlmostEqual(a, b / norm, delta=1e-5)
        for bad in ({"dimensions": 0}, {"dimensions": 257}, {"dimensions": -1}, {"encoding_format": "int8"}, {"input": []}, {"input": ""}, {"input": [""]}, {"input": None},
                    {"input": {}}, {"input": [[]]}, {"input": ["a", 5]}, {"input": [1536]}, {"input": [-1]}):
            self.refused(self.server.post("/v1/embeddings", {"input": "x", **bad}), 400)
        self.refused(self.server.post("/v1/embeddings", {"input": "word " * 600}), 400)  # longer than the context


class Tokens(ServerTest):
    ADAPTERS = ()

    def test_round_trip(self):
        for text in ("Hello", "SELECT * FROM x", "äöü 你好 🦜", " spaces  ", "\n\t", "<|im_start|>"):
            body = self.good(self.server.post("/tokenize", {"prompt": text, "return_token_strs": True}))
            self.assertEqual((body["count"], body["max_model_len"]), (len(body["tokens"]), 512))
            self.assertEqual(len(body["token_strs"]), body["count"])
            self.assertEqual(self.good(self.server.post("/detokenize", {"tokens": body["tokens"]})), {"prompt": text})
        chat = self.good(self.server.post("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}))
        self.assertEqual(self.good(self.server.post("/detokenize", {"tokens": chat["tokens"]}))["prompt"], "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
        for bad in ({"tokens": [99999]}, {"tokens": [-1]}, {"tokens": "x"}, {}, {"tokens": [1.5]}):
            self.refused(self.server.post("/detokenize", bad), 400)
        self.refused(self.server.post("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}), 400)
        self.refused(self.server.post("/tokenize", {}), 400)


if __name__ == "__main__":
    unittest.main()
