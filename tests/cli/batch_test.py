#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""`lorikeet batch` from outside: the server's answers, errors by line, interruptions. Usage: batch_test.py BINARY"""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
os.environ["LORIKEET"] = BINARY
sys.path.insert(0, "tests/http")
import harness  # noqa: E402

MODEL, ADAPTERS = harness.MODEL, harness.ADAPTERS
LORAS = [part for name in harness.NAMES for part in ("--lora", f"{name}={ADAPTERS}/{name}")]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "Which customers live in Riga?"}]
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}}


def request(name: str, body, url: str = COMPLETIONS) -> dict:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def short(name: str, **more) -> dict:
    return request(name, {"model": "sql", "prompt": f"Number {name}:", "max_tokens": 4, "seed": 1, **more})


def text_of(lines: list) -> str:
    return "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def read(path) -> list:
    return [json.loads(line) for line in pathlib.Path(path).read_text().split("\n") if line]


def by_name(results: list) -> dict:
    return {result["custom_id"]: result for result in results}


def without_names(body):
    """An answer but for its ids and its time, which differ from request to request."""
    if isinstance(body, dict):
        return {key: without_names(value) for key, value in body.items() if key not in ("id", "created")}
    return [without_names(value) for value in body] if isinstance(body, list) else body


class Batch(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.input, self.output, self.part = self.dir / "in.jsonl", self.dir / "out.jsonl", self.dir / "out.jsonl.part"

    def command(self, *more: str, source=None, target=None) -> list:
        return [BINARY, "batch", MODEL, str(source or self.input), str(target or self.output), *LORAS, "--threads", "1", "--memory", "256MiB", *more]

    def run_batch(self, lines, *more: str, **files) -> subprocess.CompletedProcess:
        self.input.write_text(lines if isinstance(lines, str) else text_of(lines))
        return subprocess.run(self.command(*more, **files), capture_output=True, text=True, timeout=300, check=False)

    def start_with_pipe(self, lines: list) -> subprocess.Popen:
        """A batch that has answered these lines and waits for more."""
        process = subprocess.Popen(self.command(source="-"), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (process.kill(), process.communicate()))
        process.stdin.write(text_of(lines))
        process.stdin.flush()
        harness.wait_for(lambda: self.part.exists() and self.part.read_text().count("\n") >= len(lines), "the first answers")
        return process

    def test_answers_are_the_servers(self):
        bodies = {
            "chat": (CHAT, {"model": "sql", "messages": HELLO, "max_tokens": 12, "temperature": 0}),
            "base": (CHAT, {"messages": HELLO, "max_tokens": 8, "seed": 3, "n": 2, "logprobs": True, "top_logprobs": 2}),
            "sum": (COMPLETIONS, {"model": "sql*0.7+json*0.3", "prompt": ["a", [5, 6, 7]], "max_tokens": 6, "seed": 7, "echo": True, "logprobs": 1}),
            "version": (COMPLETIONS, {"model": "math@1", "prompt": "2+2=", "max_tokens": 4, "temperature": 0, "return_token_ids": True}),
            "tool": (CHAT, {"model": "json", "messages": HELLO, "tools": [TOOL], "tool_choice": "required", "max_tokens": 40, "seed": 5}),
            "schema": (CHAT, {"messages": HELLO, "max_tokens": 40, "seed": 5, "response_format": {"type": "json_object", "schema": {"enum": [1, 2]}}}),
            "vectors": ("/v1/embeddings", {"model": "tag", "input": ["one", "two"], "encoding_format": "base64"}),
            "tokens": ("/tokenize", {"prompt": "Riga", "return_token_strs": True}),
            "text": ("/detokenize", {"tokens": [5, 6, 7]}),
            "nobody": (CHAT, {"model": "nobody", "messages": HELLO}),
            "range": (COMPLETIONS, {"prompt": "x", "temperature": -1}),
            "long": (COMPLETIONS, {"prompt": [5] * 100_000}),
            "kind": (COMPLETIONS, {"prompt": 5}),
            "nested": (COMPLETIONS, {"prompt": "x", "max_tokens": 1, "metadata": json.loads("[" * 63 + "]" * 63)}),
        }
        done = self.run_batch([request(name, body, url) for name, (url, body) in bodies.items()])
        self.assertEqual(done.returncode, 1, done.stderr)
        results = by_name(read(self.output))
        self.assertEqual(set(results), set(bodies))
        server = harness.Server()
        self.addCleanup(server.stop)
        for name, (url, body) in bodies.items():
            with self.subTest(name):
                answer = server.post(url, body)
                result = results[name]
                self.assertEqual(set(result), {"id", "custom_id", "response", "error"})
                self.assertIsNone(result["error"])
                self.assertEqual(result["response"]["status_code"], answer.status)
                self.assertEqual(without_names(result["response"]["body"]), without_names(answer.json))
        self.assertEqual(len({result["id"] for result in results.values()}), len(bodies))
        self.assertEqual({name for name, result in results.items() if result["response"]["status_code"] != 200}, {"nobody", "range", "long", "kind"})

    def test_lines_that_are_no_requests_fail_alone(self):
        good = [short("a"), short("z")]
        bad = {
            "not json": ("invalid_json_line", None),
            "[1]": ("invalid_json_line", None),
            '{"custom_id": "two", "custom_id": "two"}': ("invalid_json_line", None),
            json.dumps({**short("?"), "custom_id": None}): ("missing_required_parameter", "custom_id"),
            json.dumps({**short("?"), "custom_id": 7}): ("invalid_value", "custom_id"),
            json.dumps({"custom_id": "b", "method": "POST", "url": CHAT}): ("missing_required_parameter", "body"),
            json.dumps({**short("c"), "method": "GET"}): ("invalid_method", "method"),
            json.dumps({**short("d"), "url": "/v1/adapters"}): ("invalid_url", "url"),
            json.dumps({**short("e"), "body": []}): ("invalid_value", "body"),
            json.dumps(short("f", stream=True)): ("invalid_value", "body.stream"),
            json.dumps(short("a", max_tokens=5)): ("duplicate_custom_id", "custom_id"),
            json.dumps(short("g", user="x" * 80_000)): ("request_too_large", None),
        }
        done = self.run_batch("\ufeff" + text_of([good[0], "", *bad, "  ", good[1]]).replace("\n", "\r\n"), "--max-body", "64KiB")
        self.assertEqual(done.returncode, 1, done.stderr)
        results = read(self.output)
        self.assertEqual({result["custom_id"]: result["response"]["status_code"] for result in results if result["error"] is None}, {"a": 200, "z": 200})
        failed = {result["error"]["line"]: result for result in results if result["error"]}
        self.assertEqual(len(results), len(bad) + 2)
        for number, (line, (code, param)) in enumerate(bad.items(), start=3):
            with self.subTest(line[:60]):
                result = failed[number]
                self.assertIsNone(result["response"])
                self.assertEqual((result["error"]["code"], result["error"]["param"]), (code, param))
                self.assertIn(f"line {number}: ", result["error"]["message"])
        self.assertEqual([failed[number]["custom_id"] for number in sorted(failed)], [None, None, None, None, None, "b", "c", "d", "e", "f", "a", None])

    def test_failures_can_have_a_file_of_their_own(self):
        errors = self.dir / "errors.jsonl"
        done = self.run_batch([short("a"), short("b", temperature=-1), "nonsense"], "--errors", str(errors))
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual([result["custom_id"] for result in read(self.output)], ["a"])
        self.assertEqual({result["custom_id"] for result in read(errors)}, {"b", None})
        done = self.run_batch([short("a")], "--errors", str(errors))
        self.assertEqual((done.returncode, errors.read_text()), (0, ""), done.stderr)
        self.assertEqual(sorted(path.name for path in self.dir.iterdir()), ["errors.jsonl", "in.jsonl", "out.jsonl"])

    def test_what_cannot_be_a_batch_is_refused(self):
        def refused(done, *words):
            self.assertEqual(done.returncode, 1, done.stderr)
            for word in words:
                self.assertIn(word, done.stderr.strip().splitlines()[-1])
            self.assertFalse(self.output.exists())

        refused(self.run_batch(""), "is empty")
        refused(self.run_batch("\n  \n"), "is empty")
        refused(self.run_batch([short("a")], target=self.input), "over its own input")
        refused(self.run_batch([short("a")], target=self.dir / "nowhere" / "out"), "No such file")
        refused(self.run_batch([short("a")], "--errors", str(self.output)), "cannot both go")
        refused(subprocess.run(self.command(source=self.dir / "none"), capture_output=True, text=True, timeout=300, check=False), "No such file")
        self.part.write_text("something else\n")
        refused(self.run_batch([short("a")]), "no result of a batch")
        self.assertEqual(self.part.read_text(), "something else\n")

    def test_a_killed_batch_goes_on(self):
        lines = [short(str(i)) for i in range(12)]
        process = self.start_with_pipe(lines[:5])
        other = self.run_batch(lines)
        self.assertEqual(other.returncode, 1)
        self.assertIn("another process", other.stderr)
        process.kill()
        process.wait()
        before = self.part.read_text().splitlines()
        self.assertEqual(len(before), 5)
        self.part.write_text("\n".join([*before, before[0][:40]]))  # a line that was cut off
        lines[2] = short("2", max_tokens=6)
        done = self.run_batch(["# not a request", *lines])
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("4 were answered before", done.stderr)
        results = self.output.read_text().splitlines()
        self.assertEqual(results[:5], before)
        self.assertEqual(len(results), 14)  # two of the line that was changed
        self.assertEqual({json.loads(line)["custom_id"] for line in results}, {None, *map(str, range(12))})
        self.assertFalse(self.part.exists())

    def test_sigterm_keeps_what_was_answered(self):
        lines = [short(str(i)) for i in range(6)]
        process = self.start_with_pipe(lines[:3])
        process.stdin.write(text_of([short("long", max_tokens=400, ignore_eos=True)]))
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, log)
        self.assertIn("the same command goes on", log)
        self.assertFalse(self.output.exists())
        done = self.run_batch(lines)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({name: result["response"]["status_code"] for name, result in by_name(read(self.output)).items() if name != "long"},
                         {str(i): 200 for i in range(6)})

    def test_standard_input_and_output(self):
        done = subprocess.run(self.command(source="-", target="-"), input=text_of([short("a"), short("b", no_such_field=1)]), capture_output=True, text=True,
                              timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({json.loads(line)["custom_id"] for line in done.stdout.splitlines()}, {"a", "b"})
        done = self.run_batch([{**short("a"), "purpose": 1}, {**short("b"), "purpose": 1}])
        self.assertEqual(done.stderr.count('"purpose"'), 1, done.stderr)

    def test_adapters_of_a_directory_known_by_name(self):
        self.input.write_text(text_of([request(name, {"model": name, "prompt": "x", "max_tokens": 2, "temperature": 0}) for name in harness.NAMES]))
        done = subprocess.run([BINARY, "batch", MODEL, str(self.input), str(self.output), "--lora-dir", ADAPTERS, "--lora-eager", "0", "--threads", "1", "--memory", "256MiB"],
                              capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({name: result["response"]["body"]["model"] for name, result in by_name(read(self.output)).items()}, {name: name for name in harness.NAMES})

    def test_a_command_line_of_vllm(self):
        self.input.write_text(text_of([short("a")]))
        done = subprocess.run([BINARY, "batch", "-i", str(self.input), "-o", str(self.output), "--model", MODEL, "--enable-lora", "--lora-modules", f"sql={ADAPTERS}/sql",
                               "--max-lora-rank", "64", "--output-tmp-dir", "/tmp", "--gpu-memory-utilization", "0.9", "--memory", "256MiB"],
                              capture_output=True, text=True, timeout=300, check=False)
        self.assertEqual((done.returncode, [result["custom_id"] for result in read(self.output)]), (0, ["a"]), done.stderr)
        self.assertIn("--output-tmp-dir has no effect", done.stderr)

    def test_more_lines_than_are_under_way(self):
        lines = [short(str(i), max_tokens=1) for i in range(300)]
        done = self.run_batch(lines, "--max-running", "4")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(set(by_name(read(self.output))), set(map(str, range(300))))


if __name__ == "__main__":
    unittest.main(verbosity=2)
