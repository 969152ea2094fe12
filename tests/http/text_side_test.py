# SPDX-License-Identifier: Apache-2.0
"""Adapters that bring tokens, templates and defaults of their own, over a small base with spare rows; agents' histories."""
import json
import os
import random
import struct
import unittest

from harness import Directory, Server, ServerTest

ROWS, WIDTH, KV = 272, 64, 32
BYTES = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}


def byte_vocabulary() -> dict:
    shifted = {b: 256 + k for k, b in enumerate(b for b in range(256) if b not in BYTES)}
    return {chr(shifted.get(b, b)): b for b in range(256)}


def tokenizer(*more: str) -> dict:
    contents = ["<|pad|>", "<|eos|>", "<|end|>", *more]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"version": "1.0", "added_tokens": [{"id": 256 + k, "content": content, **flags} for k, content in enumerate(contents)], "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": byte_vocabulary(), "merges": []}}


def write_tensors(path: str, shapes: dict):
    draw = random.Random(1)
    header, data = {}, b""
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        piece = struct.pack(f"<{count}f", *(1.0 if len(shape) == 1 else draw.gauss(0, 0.05) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def write_json(path: str, value):
    with open(path, "w") as file:
        file.write(value if isinstance(value, str) else json.dumps(value))


TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


class SmallBase(Directory):
    def make_base(self, name: str = "base") -> str:
        root = self.path(name)
        self.make(name, {
            "config.json": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1,
                            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": KV, "vocab_size": ROWS, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
                            "rope_theta": 10000.0, "tie_word_embeddings": True, "eos_token_id": 257, "hidden_act": "silu"},
            "tokenizer.json": tokenizer(), "tokenizer_config.json": {"eos_token": "<|eos|>", "pad_token": "<|pad|>", "chat_template": TEMPLATE}})
        layer = "model.layers.0."
        write_tensors(root + "/model.safetensors", {
            "model.embed_tokens.weight": (ROWS, WIDTH), "model.norm.weight": (WIDTH,), layer + "input_layernorm.weight": (WIDTH,),
            layer + "post_attention_layernorm.weight": (WIDTH,), layer + "self_attn.q_proj.weight": (WIDTH, WIDTH), layer + "self_attn.k_proj.weight": (KV, WIDTH),
            layer + "self_attn.v_proj.weight": (KV, WIDTH), layer + "self_attn.o_proj.weight": (WIDTH, WIDTH),
            **{layer + f"mlp.{part}_proj.weight": (WIDTH, WIDTH) for part in ("gate", "up", "down")}})
        return root

    def make(self, name: str, files: dict) -> str:
        for file, value in files.items():
            path = self.path(name, file)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_json(path, value)
        return self.path(name)

    def make_adapter(self, name: str, files: dict, config: dict | None = None, tensors: dict | None = None) -> str:
        settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"], **(config or {})}
        root = self.make(name, {"adapter_config.json": settings, **files})
        part = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        write_tensors(root + "/adapter_model.safetensors", {part + "A.weight": (4, WIDTH), part + "B.weight": (WIDTH, 4), **(tensors or {})})
        return root

    def serve(self, *adapters: str, options: tuple = ()) -> Server:
        flags = [flag for name in adapters for flag in ("--lora", f"{name}={self.path(name)}")]
        server = Server(*flags, *options, adapters=(), model=(self.make_base(),))
        self.addCleanup(server.stop)
        return server


def tokens_of(server: Server, model: str, messages=None, **fields):
    body = {"model": model, **({"messages": messages} if messages else {}), **fields}
    return server.post("/tokenize", body).json["tokens"]


class TextSides(SmallBase):
    def test_tokens_of_the_adapter(self):
        self.make_adapter("cite", {"tokenizer.json": tokenizer("<|cite|>")})
        self.make_adapter("named", {"tokenizer_config.json": {"extra_special_tokens": ["<|cite|>"]}})
        self.make_adapter("plain", {})
        server = self.serve("cite", "named", "plain")
        for model in ("cite", "named"):
            self.assertEqual(tokens_of(server, model, prompt="a<|cite|>"), [97, 259])
            self.assertEqual(server.post("/detokenize", {"model": model, "tokens": [97, 259]}).json["prompt"], "a<|cite|>")
            answer = server.complete("a<|cite|>", model, max_tokens=2, logit_bias={"259": 100}, skip_special_tokens=False, temperature=0).json
            self.assertEqual(answer["usage"]["prompt_tokens"], 2)
            self.assertEqual(answer["choices"][0]["text"], "<|cite|><|cite|>")
            chat = server.chat("<|cite|>", model, max_tokens=1).json
            self.assertEqual(chat["usage"]["prompt_tokens"], len("user:") + 1 + 1 + len("assistant:"))
        for model in ("plain", "base"):
            self.assertEqual(len(tokens_of(server, model, prompt="a<|cite|>")), 9)
        self.assertEqual(server.post("/detokenize", {"model": "nobody", "tokens": [1]}).status, 404)

    def test_a_vocabulary_of_the_adapter(self):
        names = [f"<|n{k}|>" for k in range(ROWS - 259 + 2)]
        ends = ("model.embed_tokens", "lm_head")
        self.make_adapter("grown", {"tokenizer.json": tokenizer(*names)}, {"modules_to_save": ["embed_tokens", "lm_head"]},
                          {f"base_model.model.{end}.modules_to_save.weight": (ROWS + 2, WIDTH) for end in ends})
        self.make_adapter("plain", {})
        server = self.serve("grown", "plain")
        last = ROWS + 1
        self.assertEqual(tokens_of(server, "grown", prompt=names[-1]), [last])
        fields = {"max_tokens": 2, "logit_bias": {str(last): 100}, "skip_special_tokens": False, "temperature": 0, "logprobs": 2, "frequency_penalty": 0.1}
        answer = server.complete("a" + names[-1], "grown", **fields).json
        self.assertEqual(answer["choices"][0]["text"], 2 * names[-1])
        answer = server.complete("a", "grown", max_tokens=3, regex="(" + names[-1].replace("|", "\\|") + "|b)", temperature=0).json
        self.assertEqual(answer["choices"][0]["text"], "b")
        answer = server.complete([97, last], "grown", max_tokens=1, stop_token_ids=[last], allowed_token_ids=[last], temperature=0).json
        self.assertEqual(answer["choices"][0]["finish_reason"], "stop")
        for model in ("plain", "base"):
            for refused in (server.complete("a", model, **fields), server.complete([97, last], model, max_tokens=1),
                            server.complete("a", model, max_tokens=1, stop_token_ids=[last])):
                self.assertEqual(refused.status, 400, refused)
                self.assertIn("vocabulary", refused.json["error"]["message"])
        self.assertEqual(server.complete([last + 1], "grown", max_tokens=1).status, 400)

    def test_an_activated_adapter_goes_on_from_what_the_base_has_cached(self):
        self.make_adapter("activated", {}, {"alora_invocation_tokens": [33, 33]})
        self.make_adapter("plain", {})
        server = self.serve("activated", "plain")
        prompt = "a" * 40 + "!!" + "bcd"

        def cached(model: str) -> int:
            usage = server.complete(prompt, model, max_tokens=4, temperature=0).json["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        self.assertEqual([cached(model) for model in ("base", "activated", "plain", "activated")], [0, 32, 0, 32])
        # Without its tokens it is the base, to the last bit.
        alone = [server.complete("a" * 40, model, max_tokens=8, logprobs=3, temperature=0).json["choices"][0] for model in ("base", "activated")]
        self.assertEqual(alone[0], alone[1])

    def test_what_contradicts_the_base_is_refused(self):
        other = tokenizer()
        other["added_tokens"][2]["content"] = "<|other|>"
        self.make_adapter("other", {"tokenizer.json": other})
        self.make_adapter("many", {"tokenizer.json": tokenizer(*(f"<|n{k}|>" for k in range(20)))})
        server = self.serve(options=("--lora-root", self.dir))
        for name, reason in (("other", "<|other|>"), ("many", "272 rows")):
            answer = server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": self.path(name)})
            self.assertEqual(answer.status, 400, answer)
            self.assertIn(reason, answer.text)

    def test_ends_and_defaults_of_the_adapter(self):
        self.make_adapter("ends", {"tokenizer_config.json": {"eos_token": "<|end|>"},
                                   "generation_config.json": {"do_sample": False, "max_new_tokens": 3, "stop_strings": ["zz"]}})
        server = self.serve("ends")
        end = {"logit_bias": {"258": 100}, "temperature": 0}
        answer = server.chat("x", "ends", **end).json
        self.assertEqual((answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]), ("stop", 1))
        self.assertEqual(server.chat("x", "base", max_tokens=2, **end).json["choices"][0]["finish_reason"], "length")
        first, second = (server.chat("x", "ends", ignore_eos=True).json for _ in range(2))
        self.assertEqual(first["choices"][0]["message"], second["choices"][0]["message"], "greedy without a temperature")
        self.assertEqual(first["usage"]["completion_tokens"], 3)
        stopped = server.chat("x", "ends", logit_bias={str(ord("z")): 100}).json["choices"][0]
        self.assertEqual((stopped["message"]["content"], stopped["finish_reason"]), ("", "stop"))
        constrained = server.chat("x", "ends", guided_regex="[ab]").json["choices"][0]
        self.assertIn(constrained["message"]["content"], ("a", "b"))
        self.assertEqual(constrained["finish_reason"], "stop")

    def test_templates_by_name_and_tool_formats(self):
        named = [{"name": "default", "template": TEMPLATE}, {"name": "rag", "template": "{{ (documents or []) | length }}{{ messages[0].content }}"},
                 {"name": "tool_use", "template": "{{ tools | tojson }}{{ messages[0].content }}{# <tool_call> #}"}]
        self.make_adapter("tools", {"tokenizer_config.json": {"chat_template": named}})
        self.make_adapter("files", {"chat_template.jinja": TEMPLATE, "additional_chat_templates/tool_use.jinja": "{{ tools | length }}get_weather{{ messages[0].content }}[TOOL_CALLS]"})
        server = self.serve("tools", "files")
        messages = [{"role": "user", "content": "hi"}]

        def shown(model, **fields):
            return bytes(tokens_of(server, model, messages, **fields)).decode()

        self.assertEqual(shown("tools", chat_template="rag"), "0hi")
        self.assertIn("get_weather", shown("tools", tools=[TOOL]))
        self.assertEqual(shown("files", tools=[TOOL]), "1get_weatherhi[TOOL_CALLS]")
        refused = server.chat("hi", "base", tools=[TOOL])
        self.assertEqual((refused.status, refused.json["error"]["param"]), (400, "tools"), refused)
        self.assertIn("does not show the model any tools", refused.text)
        unknown = server.chat("hi", "tools", chat_template="other")
        self.assertEqual((unknown.status, unknown.json["error"]["param"]), (400, "chat_template"))
        self.assertEqual(server.chat("hi", "tools", chat_template="{{ 1 }}").status, 400)
        # The format of the calls is that of the template which showed the tools, not of the base, which has none.
        for model, text in (("tools", '<tool_call>{"name": "get_weather", "arguments": {"city": "R"}}</tool_call>'),
                            ("files", '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "R"}}]')):
            answer = server.post("/v1/chat/completions", {"model": model, "messages": messages, "tools": [TOOL], "max_tokens": len(text), "temperature": 0,
                                                          "guided_choice": [text]}).json
            self.assertNotIn("tool_calls", answer["choices"][0]["message"], "a grammar of the caller's")
            self.assertEqual(answer["choices"][0]["message"]["content"], text)

    def test_templates_that_walk_lists(self):
        self.make_adapter("walks", {"chat_template.jinja": "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"})
        server = self.serve("walks")
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        self.assertEqual(bytes(tokens_of(server, "walks", [{"role": "user", "content": parts}])), b"<a><b>")
        self.assertEqual(bytes(tokens_of(server, "base", [{"role": "user", "content": parts}])[:-11]), b"user:a\nb")


class AgentHistory(ServerTest):
    ADAPTERS = ("json",)

    def test_a_server_takes_its_own_answers_back(self):
        call = lambda arguments: {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}]}
        result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        for arguments in ('{"city": "Riga"}', '{"city": "Ri', "", "null", "[1, 2]", [1, 2], None, {"city": "Riga"}, "5"):
            answer = self.server.post("/v1/chat/completions", {"model": "json", "max_tokens": 1, "tools": [TOOL],
                                                               "messages": [{"role": "user", "content": "Weather?"}, call(arguments), result, {"role": "user", "content": "So?"}]})
            self.good(answer)
        for message in ({"content": None}, {"content": None, "reasoning": "hm"}, {"content": "", "reasoning_content": "hm"}, {"content": "x", "thinking": "y", "refusal": None},
                        {"content": None, "function_call": None, "audio": None, "tool_calls": None}, {"content": None, "tool_calls": []}):
            self.good(self.server.post("/v1/chat/completions", {"model": "json", "max_tokens": 1, "messages": [
                {"role": "user", "content": "a"}, {"role": "assistant", **message}, {"role": "user", "content": "b"}]}))
        self.refused(self.server.post("/v1/chat/completions", {"model": "json", "messages": [{"role": "user"}]}), 400, param="messages[0].content")

    def test_variables_of_any_kind(self):
        self.good(self.server.chat("x", "json", max_tokens=1, chat_template_kwargs={"a": [1, {"b": None}], "c": {"d": [True]}}))


if __name__ == "__main__":
    unittest.main()
