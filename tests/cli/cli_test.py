#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of the lorikeet program: outputs, exit codes, one clear line per error. Usage: cli_test.py BINARY"""
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

BINARY = sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet"
DEMO = pathlib.Path("examples/demo")
MODEL = str(DEMO / "model")
ADAPTERS = sorted(p.name for p in (DEMO / "adapters").iterdir())
LORAS = [part for name in ADAPTERS for part in ("--lora", f"{name}={DEMO / 'adapters' / name}")]


def run(*args: str, stdin: str = "") -> subprocess.CompletedProcess:
    return subprocess.run([BINARY, *args], input=stdin, capture_output=True, text=True, timeout=300, check=False)


def batch(lines: list, *args: str) -> tuple[list, subprocess.CompletedProcess]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    done = run("generate", MODEL, *LORAS, "--input", "-", *args, stdin=text)
    return [json.loads(line) for line in done.stdout.splitlines()], done


class Temporary(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)

    def copy_model(self) -> str:
        target = os.path.join(self.dir, "model")
        shutil.copytree(MODEL, target)
        return target

    def refused(self, *args: str, words: tuple = ()):
        done = run(*args)
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("lorikeet: "), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)


class Generate(Temporary):
    def test_mixed_batch_equals_each_request_alone(self):
        lines = [json.loads(line) for line in (DEMO / "prompts.jsonl").read_text().splitlines()]
        together, done = batch([{**line, "logprobs": 2} for line in lines], "--step-tokens", "23")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([r["id"] for r in together], [line["id"] for line in lines])
        for line, expected in zip(lines, together):
            alone, _ = batch([{**line, "logprobs": 2}], "--threads", "1", "--no-prefix-cache")
            self.assertEqual(alone[0], expected)

    def test_cut_answers_go_on_where_they_were(self):
        line = {"adapter": "sql", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 1.3, "seed": 9, "presence_penalty": 0.5, "ignore_eos": True, "logprobs": 1}
        (whole,), _ = batch([line])
        rest, done = batch([{**line, "output_so_far": whole["token_ids"][:cut]} for cut in range(16)])
        self.assertEqual(done.returncode, 0, done.stderr)
        for cut, result in enumerate(rest):
            self.assertEqual(result["token_ids"], whole["token_ids"][cut:])
            self.assertEqual(result["logprobs"], whole["logprobs"][cut:])
            self.assertTrue(whole["text"].endswith(result["text"]))
        failed, _ = batch([{**line, "output_so_far": whole["token_ids"]}, {**line, "output_so_far": [1.5]}])
        self.assertIn("fewer than max_tokens (16)", failed[0]["error"]["message"])
        self.assertIn("output_so_far", failed[1]["error"]["message"])

    def test_bad_lines_fail_alone_and_order_is_kept(self):
        lines = [{"id": 0, "prompt": "hi", "max_tokens": 2}, {"id": 1, "prompt": "hi", "nonsense": 1}, "not json",
                 {"id": 3, "token_ids": [10 ** 6]}, {"id": 4, "prompt": "hi", "adapter": "nobody"},
                 {"id": 5, "prompt": "word " * 4000}, {"id": 6, "prompt": "hi", "temperature": -1}, {"id": 7, "prompt": ""},
                 {"id": 8, "prompt": "hi", "max_tokens": 2}]
        results, done = batch(lines)
        self.assertEqual(done.returncode, 1)
        self.assertEqual([r["id"] for r in results], [0, 1, None, 3, 4, 5, 6, 7, 8])
        self.assertEqual([i for i, r in enumerate(results) if "error" in r], [1, 2, 3, 4, 5, 6, 7])
        self.assertEqual(results[0]["token_ids"], results[8]["token_ids"])

    def test_expected_answers_are_scored(self):
        results, done = batch([{"prompt": "hi", "max_tokens": 1, "expected": "zzz"}])
        self.assertFalse(results[0]["match"])
        self.assertIn("0 of    1 answers match", done.stderr)

    def test_full_disk_loses_no_finished_result(self):
        done = run("generate", MODEL, "--input", "-", "--output", "/dev/full", stdin='{"id": 1, "prompt": "hi", "max_tokens": 2}')
        self.assertEqual(done.returncode, 1)
        self.assertIn("No space left", done.stderr)
        self.assertEqual(json.loads(done.stdout)["id"], 1)

    def test_interrupt_keeps_what_is_finished(self):
        output = os.path.join(self.dir, "out.jsonl")
        lines = [{"id": i, "prompt": "Once upon a time", "max_tokens": 2 if i < 5 else 400, "ignore_eos": True} for i in range(200)]
        source = os.path.join(self.dir, "in.jsonl")
        pathlib.Path(source).write_text("\n".join(map(json.dumps, lines)))
        process = subprocess.Popen([BINARY, "generate", MODEL, "--input", source, "--output", output, "--max-running", "8"],
                                   stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not os.path.exists(output) or os.path.getsize(output) == 0):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        results = [json.loads(line) for line in pathlib.Path(output).read_text().splitlines()]
        self.assertGreaterEqual(len(results), 1)
        self.assertIn(process.returncode, (0, 130), errors)

    def test_wrong_usage(self):
        self.assertEqual(run("generate", MODEL).returncode, 2)
        self.assertEqual(run("generate", MODEL, "--isa", "mmx", "--prompt", "x").returncode, 2)
        self.assertEqual(run("nonsense").returncode, 2)
        self.assertEqual(run("--help").returncode, 0)
        self.refused("generate", "/nonexistent", "--prompt", "x", words=("/nonexistent",))
        self.refused("generate", MODEL, "--prompt", "x", "--lora", "a", words=("NAME=DIR",))
        self.refused("generate", MODEL, "--prompt", "x", "--lora", "a=/nonexistent", words=("/nonexistent",))
        self.refused("generate", MODEL, "--prompt", "x", "--memory", "1KiB", words=("--memory",))

    def test_other_servers_command_lines(self):
        """As they stand in people's scripts: they start (--check-config is what would happen), or say what to write instead."""
        sql = "examples/demo/adapters/sql"
        starts = {
            "vllm": ["--model", MODEL, "--enable-lora", "--lora-modules", f"sql={sql}", json.dumps({"name": "org/b", "path": sql, "base_model_name": "x"}), "--max-loras", "4",
                     "--max-lora-rank", "64", "--max-cpu-loras=8", "--max_model_len", "256", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.9", "--dtype", "auto", "-tp", "1",
                     "--enable-prefix-caching", "--enable-chunked-prefill", "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--trust-remote-code",
                     "--disable-log-requests", "--seed", "0", "--api-key", "sk-0123456789abcdefghij", "--host", "127.0.0.1", "--port", "8000", "--allowed-origins", '["https://a.example"]'],
            "several names": ["--served-model-name", "a", "org/b", MODEL, "--tool-call-parser", "qwen", "--reasoning-parser", "qwen3-thinking"],
            "positional": ["--swap-space", "4", MODEL, "--uvicorn-log-level=warning", "--no-enable-prefix-caching"],
            "sglang": ["--model-path", MODEL, "--lora-paths", f"a={sql}", f"b={sql}", "--max-loras-per-batch", "2", "--mem-fraction-static", "0.8", "--context-length", "256",
                       "--chunked-prefill-size", "128", "--tp", "1", "--disable-radix-cache", "--schedule-policy", "lpm", "--lora-backend", "triton", "--max-total-tokens", "8192",
                       "--max-prefill-tokens", "128", "--cuda-graph-bs", "1", "2", "--disable-overlap-schedule"],
            "sglang's other forms": ["--model", MODEL, "--lora-paths", sql, json.dumps({"lora_name": "b", "lora_path": sql}), "--chunked-prefill-size", "-1", "--lora-target-modules", "all"],
            "short": [MODEL + "/", "--max-model-len", "auto", "-O3", "--compilation-config", "{}", "--no-enable-chunked-prefill"],
            "llama-server": ["-m", MODEL, "-c", "256", "-np", "4", "-b", "128", "-ub", "64", "-ngl", "0", "-a", "demo", "--jinja", "-t", "2", "--metrics", "--no-warmup", "-n", "64", "--temp", "0.7", "-v"],
        }
        for name, arguments in starts.items():
            done = run("serve", *arguments, "--no-state", "--check-config")
            self.assertEqual(done.returncode, 0, (name, done.stderr))
        vllm = run("serve", *starts["vllm"], "--no-state", "--print-config")
        for line in ('context = 256', 'max-running = 16', 'max-loras = 4', 'dtype = "bf16"', 'allow-origin = ["https://a.example"]'):
            self.assertIn(line, vllm.stdout)
        self.assertNotIn("sk-0123456789abcdefghij", vllm.stdout + vllm.stderr, "a key is not shown")
        for words in (("--gpu-memory-utilization", "--memory"), ("--max-cpu-loras", "--host-memory"), ("--api-key", "--api-key-file")):
            self.assertTrue(any(all(word in line for word in words) for line in vllm.stderr.splitlines()), (words, vllm.stderr))
        self.assertNotIn("--enable-auto-tool-choice", vllm.stderr, "what is as it was asked for is not worth a line")
        for arguments, words in ((["--pipeline-parallel-size", "2"], ("--pipeline-parallel-size 2", "1")), (["--tensor-parallel-size", "3"], ("allow --tensor-parallel 1, 2 or 4",)), (["--quantization", "awq"], ("--quantization", "bf16")),
                                 (["-m", "model.gguf"], ("GGUF",)), (["-hf", "org/x"], ("-hf", "safetensors")), (["--api-key", "token-abc123"], ("--api-key", "16")), (["--dtype", "half"], ("bf16",)), (["--kv-cache-dtype=fp8"], ("fp8",)),
                                 (["--chat-template", "x.jinja"], ("chat_template.jinja",)), (["--revision", "main"], ("ORG/NAME@REVISION",)), (["--download-dir", "x"], ("HF_HUB_CACHE",)), (["--device", "cuda"], ("cuda", "CPU")),
                                 (["--max-running-requests"], ("wants a value",)), (["--disable-radix-cache=false"], ("takes no value",)), (["--load-format", "gguf"], ("safetensors",)), (["--api-key", "a" * 20, "b" * 20], ("lorikeet keys create",)), (["--nonsense"], ("--nonsense",)),
                                 (["--lora-modules", '{"name": "a"}'], ("path",)), (["--lora-modules", "base=examples/demo/adapters/sql"], ("base model",)),
                                 (["--served-model-name", "a", "b", "--lora-modules", "b=examples/demo/adapters/sql"], ("base model",)), (["--served-model-name", "a", "a"], ("twice",)),
                                 (["--lora-modules", "model=examples/demo/adapters/sql"], ("base model",)), (["--lora-modules", '{"name": 5, "path": "x"}'], ("name",))):
            done = run("serve", MODEL, *arguments, "--no-state", "--check-config")
            self.assertEqual(done.returncode, 1 if {"--lora-modules", "--served-model-name", "--tensor-parallel-size"} & set(arguments) else 2, (arguments, done.stderr))
            for word in words:
                self.assertIn(word, done.stderr, arguments)

    def test_help_fits_on_two_screens_and_help_all_has_everything(self):
        commands = (["serve"], ["generate"], ["batch"], ["simulate"], ["inspect"], ["merge"], ["adapter"], ["federate"], ["keys"], ["bench"],
                    ["bench", "engine"], ["bench", "serve"], ["bench", "calibrate"], ["bench", "merge"])
        for command in commands:
            short = run(*command, "--help")
            self.assertEqual((short.returncode, short.stderr), (0, ""), command)
            lines = sum(max(1, -(-len(line) // 120)) for line in short.stdout.splitlines())
            self.assertLessEqual(lines, 100, command)
        for command in ("serve", "generate"):
            short, everything = run(command, "--help").stdout, run(command, "--help-all").stdout
            names = re.findall(r"^(?:# )?([a-z][a-z-]*) = (?:[\"\[\d]|true|false)", run(command, MODEL, "--print-config").stdout, re.MULTILINE)
            names.remove("model")  # no flag
            self.assertGreater(len(names), 30)
            for name in names:
                self.assertIn(f"--{name}", everything)
            hidden = [name for name in names if f"--{name}" not in re.split(r"[ ,]", short)]
            self.assertIn(f"{len(hidden)} more options: lorikeet {command} --help-all\n", short)
        self.assertNotIn("more options", run("serve", "--help-all").stdout)

    def test_scheduling_options_that_contradict_each_other(self):
        for options, words in ((("--scheduling-policy", "lifo"), ("lifo", "fcfs, vtc")), (("--fair-within", "floor"), ("floor", "adapter")),
                               (("--service-cost", "1:-2"), ("1:-2",)), (("--service-cost", "nan:2"), ("nan",)), (("--admission", "never"), ("optimistic",)),
                               (("--quantum", "100"), ("--quantum", "dlpm")), (("--service-cost", "1e9:1"), ("only ratios matter",)),
                               (("--scheduling-policy", "fcfs", "--fair-within", "user"), ("vtc",)), (("--fair-within", "slack"), ("--slo-first-token",)),
                               (("--slo-refuse", "late"), ("--slo-first-token",)), (("--slo-first-token", "soon"), ("soon",)), (("--max-loras", "4", "--cluster-adapters", "4"), ("--cluster-adapters",)),
                               (("--drain-gap", "1"), ("--max-loras",)), (("--preempt-gap", "-1"), ("-1",)), (("--preempt-gap", "soon"), ("soon",)),
                               (("--scheduling-policy", "dlpm", "--preempt-gap", "10"), ("--preempt-gap", "vtc")), (("--preempt-gap", "10", "--admission", "reserved"), ("reserved",)), (("--max-loras", "4", "--preempt-gap", "10"), ("--max-loras",)),
                               (("--scheduling-policy", "lcf"), ("lcf", "fcfs, vtc, dlpm")), (("--merging", "always"), ("never, dlora or cost",)),
                               (("--merging", "sometimes"), ("sometimes", "never, dlora or cost")),
                               (("--exact", "a*"), ("--exact", "--merging")), (("--merging", "never", "--exact", "a*"), ("--exact", "--merging"))):
            with self.subTest(options):
                self.refused("generate", MODEL, "--prompt", "x", *options, words=words)
                self.refused("serve", MODEL, "--check-config", *options, words=words)


class BadModels(Temporary):
    def test_bounds_that_are_no_numbers(self):
        for flag, value in (("--max-wait", "nan"), ("--request-timeout", "nan"), ("--stuck-after", "nan"), ("--drain-timeout", "NaN"),
                            ("--drain-grace", "nan"), ("--context", "-1")):
            with self.subTest(flag):
                done = run("serve", MODEL, "--check-config", flag, value)
                self.assertEqual(done.returncode, 2, done.stderr)  # of the command line
                self.assertIn(flag, done.stderr)
                self.assertIn(value, done.stderr)

    def test_sizes_that_are_none(self):
        for flag in ("--memory", "--host-memory", "--sum-memory", "--grammar-memory", "--max-body"):
            for value, words in (("0", "0 must be from 1 byte to 1024TiB"), ("8gib", '"8gib" is not a size; write for example 8GiB')):
                with self.subTest(flag, value=value):
                    self.refused("serve", MODEL, "--check-config", flag, value, words=(flag, words))

    def test_truncated_lying_and_nonsense_weights(self):
        data = pathlib.Path(MODEL, "model.safetensors").read_bytes()
        cases = {"truncated": data[: len(data) // 2], "header only": data[:100], "empty": b"", "huge header": struct.pack("<Q", 1 << 60) + data[8:],
                 "garbage header": data[:8] + b"\xff" * 64 + data[72:]}
        for name, damaged in cases.items():
            with self.subTest(name):
                model = self.copy_model()
                pathlib.Path(model, "model.safetensors").write_bytes(damaged)
                self.refused("generate", model, "--prompt", "x", words=("model.safetensors",))
                shutil.rmtree(model)

    def test_not_a_number_is_named(self):
        model = self.copy_model()
        path = pathlib.Path(model, "model.safetensors")
        data = bytearray(path.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8:8 + size])
        begin = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
        data[8 + size + begin:8 + size + begin + 2] = b"\xc0\x7f"
        path.write_bytes(data)
        self.refused("generate", model, "--prompt", "x", words=("model.layers.1.mlp.up_proj.weight",))

    def test_config_that_disagrees_or_is_unknown(self):
        for change, words in (({"hidden_size": 128}, ("model.embed_tokens.weight",)), ({"architectures": ["FooForCausalLM"]}, ("FooForCausalLM",)),
                              ({"rope_scaling": {"rope_type": "longrope"}}, ("rope parameters", "short_factor")), ({"hidden_act": "gelu"}, ("gelu",)),
                              ({"quantization_config": {"quant_method": "gptq"}}, ("gptq",)), ({"num_hidden_layers": 10 ** 9}, ("num_hidden_layers",))):
            with self.subTest(change):
                model = self.copy_model()
                path = pathlib.Path(model, "config.json")
                path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
                self.refused("generate", model, "--prompt", "x", words=words)
                shutil.rmtree(model)

    def test_tokenizer_with_unknown_parts(self):
        model = self.copy_model()
        path = pathlib.Path(model, "tokenizer.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), "pre_tokenizer": {"type": "Mystery"}}))
        self.refused("generate", model, "--prompt", "x", words=("tokenizer.json", "Mystery"))

    def test_template_that_loops_is_stopped(self):
        model = self.copy_model()
        path = pathlib.Path(model, "tokenizer_config.json")
        endless = "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": endless}))
        done = run("generate", model, "--chat", "--prompt", "x")
        self.assertEqual(done.returncode, 1)


class Adapters(Temporary):
    def test_inspect_verify_convert_merge(self):
        source = str(DEMO / "adapters" / ADAPTERS[0])
        self.assertEqual(run("adapter", "inspect", source, "--base", MODEL).returncode, 0)
        self.assertIn("can be served", run("adapter", "verify", source, "--base", MODEL).stdout)
        converted, merged = os.path.join(self.dir, "f32"), os.path.join(self.dir, "merged")
        self.assertEqual(run("adapter", "convert", source, "--base", MODEL, "--out", converted, "--dtype", "f32").returncode, 0)
        done = run("merge", MODEL, source, merged, "--dtype", "f32")
        self.assertEqual(done.returncode, 0, done.stderr)
        # In f32 the converted adapter on the base and the merged model make the same tokens.
        args = ("--prompt", "Once upon a time", "--max-tokens", "24", "--dtype", "f32")
        served = run("generate", MODEL, "--lora", f"a={converted}", "--adapter", "a", *args)
        baked = run("generate", merged, *args)
        self.assertEqual(served.stdout, baked.stdout)
        self.refused("merge", MODEL, source, merged, words=(merged,))

    def test_compose_and_aggregate(self):
        sql, dates = (str(DEMO / "adapters" / name) for name in ("sql", "dates"))
        out = os.path.join(self.dir, "sum")
        done = run("adapter", "compose", sql, dates, "--weights", "1,-0.5", "--method", "svd", "--rank", "4", "--base", MODEL, "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("% of the energy", done.stdout)
        self.assertIn("can be served", run("adapter", "verify", out, "--base", MODEL).stdout)
        self.refused("adapter", "compose", sql, dates, "--base", MODEL, "--out", out, words=("already",))
        for options in (("--rank", "0"), ("--rank", "-1"), ("--density", "0")):
            done = run("adapter", "compose", sql, dates, "--method", "svd", *options, "--base", MODEL, "--out", out + "x")
            self.assertEqual(done.returncode, 2, options)
            self.assertIn(options[0], done.stderr)
        for options, words in ((("--weights", "1"), ("1 numbers for 2",)), (("--method", "ties"), ("--density",)), (("--method", "linear"), ("cat", "--peft-compatible"))):
            self.refused("adapter", "compose", sql, dates, *options, "--base", MODEL, "--out", out + "x", words=words)
        sorted_ = str(DEMO / "adapters" / "sort")
        self.refused("adapter", "compose", sql, sorted_, "--base", MODEL, "--out", out + "x", words=("DoRA",))
        # The same adapter from two clients is itself, by every rule.
        for rule in ("fedavg", "ffa", "rolora", "flora", "flex", "fedex", "median", "trimmed"):
            again = os.path.join(self.dir, rule)
            shutil.copytree(sql, again + "-client")
            done = run("federate", "aggregate", sql, again + "-client", "--rule", rule, "--weights", "3,1", "--base", MODEL, "--out", again)
            self.assertEqual(done.returncode, 0, done.stderr)
            error = float(done.stdout.split("aggregation error ")[1].split()[0].rstrip(","))
            self.assertLess(error, 1e-5, rule)
        self.assertEqual(run("federate", "aggregate", sql, again + "-client", "--rule", "fedsa", "--base", MODEL, "--out", again + "s").returncode, 0)
        self.assertEqual(sorted(os.listdir(again + "s")), ["sql", "trimmed-client"])
        self.refused("federate", "aggregate", sql, dates, "--base", MODEL, "--out", out + "x", words=("ranks 4 and 16", "fedavg"))

    def test_adapter_that_does_not_fit_is_refused(self):
        broken = os.path.join(self.dir, "broken")
        shutil.copytree(DEMO / "adapters" / ADAPTERS[0], broken)
        path = pathlib.Path(broken, "adapter_config.json")
        good = json.loads(path.read_text())
        for change, words in (({"r": 3, "rank_pattern": {}}, ("rank",)), ({"peft_type": "IA3"}, ("IA3",)), ({"use_qalora": True}, ("qalora",))):
            with self.subTest(change):
                path.write_text(json.dumps({**good, **change}))
                self.refused("generate", MODEL, "--lora", f"a={broken}", "--prompt", "x", words=words)
        path.write_text(json.dumps(good))
        other = os.path.join(self.dir, "other")
        config = {**json.loads(pathlib.Path(MODEL, "config.json").read_text()), "hidden_size": 128, "head_dim": 32}
        pathlib.Path(self.dir, "config.json").write_text(json.dumps(config))
        self.assertEqual(run("adapter", "init", other, "--config", os.path.join(self.dir, "config.json"), "--rank", "4").returncode, 0)
        self.refused("generate", MODEL, "--lora", f"a={other}", "--prompt", "x", words=("another base",))


class FakeServer(http.server.BaseHTTPRequestHandler):
    """Streams max_tokens words; knows the models base and sql."""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status: int, body: bytes, kind: str = "application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, json.dumps({"data": [{"id": "base", "parent": None}, {"id": "sql", "parent": "base"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.headers.get("Authorization"), body))
        if self.server.refuse:
            return self.answer(429, b'{"error":{"message":"too much"}}')
        count = body["max_tokens"]
        events = [{"choices": [{"index": 0, "text": "x", "delta": {"content": "x"}}]}] * count
        events.append({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": count}})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.answer(200, text.encode(), "text/event-stream")


class BenchServe(Temporary):
    def setUp(self):
        super().setUp()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
        self.server.bodies, self.server.refuse = [], False
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def test_figures_of_a_run(self):
        report = os.path.join(self.dir, "report.json")
        done = run("bench", "serve", self.url + "/v1", "--endpoint", "completions", "--input-tokens", "5:9", "--output-tokens", "4", "--num-requests", "12",
                   "--rate", "200", "--arrival", "gamma", "--cv", "2", "--adapter-mix", "distinct", "--slo", "ttft=60000", "--warmup", "2", "--api-key", "k",
                   "--per-adapter", "--json", report)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("12 ok of 12", "TTFT", "send delay", "sql"):
            self.assertIn(word, done.stdout)
        figures = json.loads(pathlib.Path(report).read_text())
        self.assertEqual((figures["ok"], figures["output_tokens"], figures["prompt_tokens"], figures["slo_attainment"]), (12, 48, 84, 1.0))
        self.assertEqual(figures["adapters"]["sql"]["ok"], 12)
        self.assertEqual(len(self.server.bodies), 14)
        for key, body in self.server.bodies:
            self.assertEqual((key, body["model"], body["ignore_eos"], body["stream"]), ("Bearer k", "sql", True, True))
            self.assertTrue(5 <= len(body["prompt"]) <= 9)

    def test_prompts_and_adapters_of_a_file(self):
        path = pathlib.Path(self.dir, "prompts.jsonl")
        path.write_text('{"prompt": "hello", "adapter": "sql", "max_tokens": 3}\n{"messages": [{"role": "user", "content": "x"}], "adapter": ""}\n')
        done = run("bench", "serve", self.url, "--prompts", str(path), "--adapter-mix", "file", "--num-requests", "4", "--concurrency", "1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([body["model"] for _, body in self.server.bodies], ["sql", "base"] * 2)
        self.assertEqual([body["max_tokens"] for _, body in self.server.bodies], [3, 64] * 2)

    def test_failures_are_clear(self):
        self.refused("bench", "serve", "http://127.0.0.1:1", words=("no server", "127.0.0.1:1"))
        self.refused("bench", "serve", self.url, "--model", "other", words=("other", "base"))
        self.refused("bench", "serve", self.url, "--adapter-mix", "same", "--adapters", "none", words=("none", "sql"))
        self.refused("bench", "serve", self.url, "--rate", "1", "--concurrency", "1", words=("--rate",))
        self.refused("bench", "serve", self.url, "--slo", "ttft", words=("--slo",))
        self.server.refuse = True
        done = run("bench", "serve", self.url, "--num-requests", "3")
        self.assertEqual(done.returncode, 1)
        self.assertIn("3 x 429: too much", done.stdout)
        self.refused("bench", "serve", self.url, "--warmup", "1", words=("warm-up", "too much"))


if __name__ == "__main__":
    unittest.main()
