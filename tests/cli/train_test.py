#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet train` on the demo's base: what it refuses, and what interruptions leave. Usage: train_test.py BINARY"""
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
MODEL = "examples/demo/model"


def talk(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


class Train(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.data = self.write("data.jsonl", [talk(f"What follows {n}?", f"{n + 1} does.") for n in range(40)])

    def write(self, name, records):
        path = self.dir / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        return path

    def job(self, name="a", **sections):
        job = {"name": name, "data": {"path": str(self.data)}, "adapter": {"rank": 2, "target_modules": ["q_proj", "down_proj"]},
               "train": {"steps": 6, "batch_samples": 3, "lr": 1e-3}}
        for section, fields in sections.items():
            job[section] = {**job.get(section, {}), **fields}
        return job

    def jobs(self, *jobs, name="jobs.yaml", **run):
        top = {"base": MODEL, "dtype": "f32", "block_tokens": 256, "threads": 1, "output": str(self.dir / "out"), "jobs": list(jobs)}
        path = self.dir / name
        path.write_text(json.dumps({**top, **run}))  # JSON is YAML
        return str(path)

    def train(self, *args, code=0, **options):
        done = subprocess.run([BINARY, "train", *args], capture_output=True, text=True, timeout=60, check=False, **options)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def start(self, *args, **options):
        # To a file: nobody reads a pipe while it runs.
        log = open(self.dir / "log", "w")
        self.addCleanup(log.close)
        process = subprocess.Popen([BINARY, "train", *args], stdout=log, stderr=log, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def log(self):
        return (self.dir / "log").read_text()

    def wait_for(self, condition, process):
        deadline = time.monotonic() + 120
        while not condition():
            self.assertIsNone(process.poll(), self.log())
            self.assertLess(time.monotonic(), deadline, self.log())
            time.sleep(0.005)

    def steps(self, job="a"):
        path = self.dir / "out/metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]
        return [line for line in map(json.loads, lines) if line["job"] == job and "perplexity" not in line]

    def adapter(self, job="a"):
        return (self.dir / "out" / job / "adapter_model.safetensors").read_bytes()

    def refused(self, *args, words=()):
        done = self.train(*args, code=1)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertTrue(done.stderr.startswith("lorikeet: "), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertFalse((self.dir / "out").exists(), "a refusal left something behind")


class Ways(Train):
    def test_one_job_from_flags(self):
        out = self.dir / "out" / "flags"
        self.train("--model", MODEL, "--data", str(self.data), "--output", str(out), "--set", "train.steps=2", "--set",
                   "adapter.rank=2", "--set", "block_tokens=256")
        self.assertEqual(json.loads((out / "adapter_config.json").read_text())["peft_type"], "LORA")
        answer = subprocess.run([BINARY, "generate", MODEL, "--lora", f"x={out}", "--adapter", "x", "--prompt", "hi", "--max-tokens", "2"],
                                capture_output=True, text=True, check=False)
        self.assertEqual(answer.returncode, 0, answer.stderr)
        self.refused_once("--model", MODEL)

    def test_flags_of_one_job_beside_a_file_are_not_ignored(self):
        file = self.jobs(self.job())
        for flag, value in (("--set", "train.lr=0.5"), ("--model", MODEL), ("--data", "x"), ("--output", "x"), ("--name", "x")):
            self.refused(file, flag, value, words=[flag, "write it into"])

    def test_what_was_dropped_is_said_in_the_configuration(self):
        self.train(self.jobs(self.job(adapter={"dropout": 0.125}, train={"steps": 1})))
        config = lambda: json.loads((self.dir / "out/a/adapter_config.json").read_text())
        self.assertEqual(config()["lora_dropout"], 0.125)
        # Who goes on with it drops as much.
        job = {"name": "b", "data": {"path": str(self.data)}, "adapter": {"init_from": str(self.dir / "out/a")}, "train": {"steps": 1}}
        self.train(self.jobs(job, output=str(self.dir / "out")))
        self.assertEqual(json.loads((self.dir / "out/b/adapter_config.json").read_text())["lora_dropout"], 0.125)

    def refused_once(self, *args):
        done = self.train(*args, code=1)
        self.assertIn("give JOBS.yaml, or --model, --data and --output", done.stderr)

    def test_preview_and_check_write_nothing(self):
        file = self.jobs(self.job(), self.job("b", data={"path": str(self.write("b.jsonl", [{"prompt": "x", "completion": "\x1b[31my"}]))}))
        done = self.train(file, "--preview", "2")
        self.assertIn("does.<|im_end|>]]", done.stdout)
        self.assertIn("job b:", done.stdout)
        self.assertIn("\\x1B[31my", done.stdout)
        done = self.train(file, "--check")
        self.assertIn("a: 40 samples", done.stderr)
        self.assertIn("in all", done.stderr)
        self.assertFalse((self.dir / "out").exists())

    def test_metrics_anywhere(self):
        self.train(self.jobs(self.job(data={"path": str(self.data)}), base=os.path.abspath(MODEL), metrics="m.jsonl"), cwd=self.dir)
        self.assertEqual(len((self.dir / "m.jsonl").read_text().splitlines()), 6)
        self.assertTrue((self.dir / "m.svg").exists())
        shutil.rmtree(self.dir / "out")
        done = self.train(self.jobs(self.job(), metrics="/dev/null"))
        self.assertNotIn("loss curves", done.stderr)

    def test_a_batch_is_at_most_an_epoch(self):
        for batch in ({"batch_samples": 10**12}, {"batch_tokens": 10**12}):
            self.train(self.jobs(self.job() | {"train": {"epochs": 2, **batch}}))
            self.assertEqual([step["epoch"] for step in self.steps()], [1, 2])
            shutil.rmtree(self.dir / "out")

    def test_a_finished_run_stays_as_it_is(self):
        file = self.jobs(self.job())
        self.train(file)
        first = self.adapter()
        self.assertEqual(len(self.steps()), 6)
        self.assertIn("a: ended already (done); to train it anew, remove", self.train(file).stderr)
        self.assertEqual(self.adapter(), first)
        self.assertEqual(len(self.steps()), 6)
        self.assertIn("</svg>", (self.dir / "out/metrics.svg").read_text())


    def test_a_preview_reads_no_weights(self):
        base = self.dir / "base"
        shutil.copytree(MODEL, base)
        (base / "model.safetensors").unlink()
        self.assertIn("does.<|im_end|>]]", self.train(self.jobs(self.job(), base=str(base)), "--preview", "1").stdout)

    def test_evaluations_say_all_they_know(self):
        self.train(self.jobs(self.job(data={"eval_split": 0.2}, eval={"every": 3, "exact_match": True})))
        lines = map(json.loads, (self.dir / "out/metrics.jsonl").read_text().splitlines())
        evaluations = [line for line in lines if "perplexity" in line]
        self.assertEqual(len(evaluations), 2)
        for line in evaluations:
            self.assertTrue(0 <= line["accuracy"] <= 1 and 0 <= line["exact_match"] <= 1, line)

    def test_several_evaluation_files(self):
        held = [self.write(f"{name}.jsonl", [talk(f"What follows {n}?", f"{n + 1} does.") for n in range(*numbers)])
                for name, numbers in (("near", (40, 44)), ("far", (900, 906)))]
        done = self.train(self.jobs(self.job(data={"eval_path": [str(path) for path in held]}, eval={"exact_match": True})))
        self.assertIn("a: 40 samples", done.stderr)
        self.assertIn("10 held out", done.stderr)
        lines = [json.loads(line) for line in (self.dir / "out/metrics.jsonl").read_text().splitlines()]
        whole, near, far = [line for line in lines if "perplexity" in line]
        self.assertEqual([line.get("file") for line in (whole, near, far)], [None, *map(str, held)])
        for key, weight in (("loss", "loss_tokens"), ("accuracy", "loss_tokens")):
            mean = (near[key] * near[weight] + far[key] * far[weight]) / whole[weight]
            self.assertAlmostEqual(whole[key], mean, places=9)
        self.assertAlmostEqual(whole["exact_match"], (4 * near["exact_match"] + 6 * far["exact_match"]) / 10, places=9)
        for path in held:
            self.assertIn(f"{path}: loss", done.stderr)

    def test_a_base_that_does_not_stop_where_its_template_does(self):
        base = self.dir / "base"
        shutil.copytree(MODEL, base)
        for name in ("config.json", "generation_config.json"):
            (base / name).write_text(json.dumps(json.loads((base / name).read_text()) | {"eos_token_id": 0}))
        words = "a: 40 answers end with a token that is not in eos_token_id"
        self.assertIn(words, self.train(self.jobs(self.job(), base=str(base)), "--check").stderr)
        self.assertNotIn(words, self.train(self.jobs(self.job()), "--check").stderr)


class BadInput(Train):
    def with_data(self, records, words, **data):
        path = self.write("bad.jsonl", records)
        self.refused(self.jobs(self.job(data={"path": str(path), **data})), words=words)

    def test_records(self):
        good = talk("q", "a")
        self.with_data([], ["bad.jsonl has no records"])
        self.with_data(["{"], ["bad.jsonl:1: not valid JSON"])
        self.with_data([good, "", '{"messages": '], ["bad.jsonl:3: not valid JSON"])
        self.with_data([good, {"messages": [{"role": "robot", "content": "x"}]}], ["bad.jsonl:2: messages[0].role", "robot"])
        self.with_data([good, {"messages": [{"role": "user", "content": "x"}]}], ["bad.jsonl:2: no turn of the assistant"])
        self.with_data([good, {"text": "x"}], ["bad.jsonl:2:", "messages"])
        self.with_data([good, talk("q", "a", weight=0)], ["bad.jsonl:2: no token of the sample has a loss"])
        self.with_data([good, json.dumps(talk("q", "a", weight=float("nan")))], ["bad.jsonl:2: not valid JSON"])
        self.with_data([good, talk("q", "a", weight=7)], ["bad.jsonl:2:", "\"weight\" must be at least 0 and at most 1, is 7"])
        self.with_data([good, talk("q", "word " * 300)], ["bad.jsonl:2: the sample has", "max_length is 256"])
        path = self.write("bad.jsonl", [good, talk("q", "word " * 600)])
        self.refused(self.jobs(self.job(data={"path": str(path)}), block_tokens=1024), words=["bad.jsonl:2:", "max_length is 512"])
        self.with_data([good], ["leaves 0 for evaluation"], eval_split=0.1)
        self.with_data([{"id": 1}], ["bad.jsonl:1: the format is not recognised"])
        self.refused(self.jobs(self.job(data={"path": str(self.dir / "none")})), words=["cannot open", "none"])
        self.refused(self.jobs(self.job(data={"path": str(self.dir)})), words=["not a regular file"])

    def test_questions_without_an_answer_are_found_before_training(self):
        plain = self.write("plain.jsonl", [{"text": "x y"}] * 2)
        self.refused(self.jobs(self.job(data={"path": str(plain), "eval_split": 0.5}, eval={"exact_match": True})),
                     words=["eval.exact_match", "plain.jsonl:", "no answer to compare with"])

    def test_skip_bad_counts(self):
        path = self.write("bad.jsonl", ["{", talk("q", "a"), talk("q", "word " * 300), talk("q", "a", weight=0)])
        data = {"path": str(path), "skip_bad": True, "long_samples": "drop"}
        done = self.train(self.jobs(self.job(data=data)), "--check")
        self.assertIn("a: 1 samples", done.stderr)
        self.assertIn("a: 2 bad records skipped", done.stderr)
        self.assertIn("a: 1 samples dropped", done.stderr)
        self.write("bad.jsonl", ["{", "}"])
        self.refused(self.jobs(self.job(data={**data, "format": "text"})), words=["no record gives a sample", "bad.jsonl:1"])

    def test_jobs(self):
        def job(words, *jobs, **run):
            self.refused(self.jobs(*jobs, **run), words=words)

        job(["nonsense"], self.job(adapter={"target_modules": ["nonsense"]}))
        job(["99"], self.job(adapter={"layers_to_transform": [0, 99]}))
        job(["rank_pattern 'k_proj' matches no module"], self.job(adapter={"rank_pattern": {"k_proj": 4}}))
        job(["alpha_pattern 'q_prj' matches no module"], self.job(adapter={"alpha_pattern": {"q_prj": 4}}))
        job(["nonsense"], self.job(adapter={"modules_to_save": ["nonsense"]}))
        job(["99999"], self.job(adapter={"trainable_tokens": [99999]}))
        job(["nowhere", "no such directory"], self.job() | {"adapter": {"init_from": str(self.dir / "nowhere")}})
        job(["two jobs are named \"a\""], self.job(), self.job())
        job(["both write to"], self.job(save={"dir": str(self.dir / "out/x")}), self.job("b", save={"dir": str(self.dir / "out/x/")}))
        for lr in ("nan", ".inf", "-1", "0", "2", "1e400"):
            file = pathlib.Path(self.jobs(self.job()))
            file.write_text(file.read_text().replace('"lr": 0.001', f'"lr": {lr}'))
            self.refused(str(file), words=["train.lr"])
        job(["jobs.yaml:1: unknown key \"train.learning_rate\"; use \"train.lr\""], self.job(train={"learning_rate": 1}))
        job(["nowhere"], self.job(), base=str(self.dir / "nowhere"))
        job(["a block of", "fits"], self.job(), memory="48MiB", block_tokens=4096)
        self.refused(str(self.dir / "none.yaml"), words=["none.yaml"])
        (self.dir / "broken.yaml").write_text("base: [\n")
        self.refused(str(self.dir / "broken.yaml"), words=["broken.yaml:"])
        for flags in (["--nonsense"], ["--threads", "-1"], ["--threads", "100000"], ["--preview", "-1"], ["--preview", "0"]):
            done = subprocess.run([BINARY, "train", self.jobs(self.job()), *flags], capture_output=True, check=False)
            self.assertEqual(done.returncode, 2, flags)
        # What has a meaning of its own, or none.
        job(["rank times num_modules is 2048"], self.job(adapter={"kind": "multilora", "num_modules": 4, "rank_pattern": {"q_proj": 512}}))
        job(["q_proj.lora_B starts at zero and is frozen"], self.job(adapter={"freeze": "B"}))
        job(["embed_tokens.lora_A starts at zero"], self.job(adapter={"freeze": "A", "target_modules": ["embed_tokens"]}))
        job(["warmup_steps is 1000", "only 14"], self.job() | {"train": {"epochs": 1, "batch_samples": 3, "warmup_steps": 1000}})
        job(["loss curves"], self.job(), metrics=str(self.dir / "m.svg"))
        file = pathlib.Path(self.jobs(self.job()))
        file.write_text(file.read_text() + "\n---\n{}\n")
        self.refused(str(file), words=["2 documents"])

    def test_places_that_are_taken(self):
        def job(words, *jobs, **run):
            self.refused(self.jobs(*jobs, **run), words=words)

        model = self.dir / "model"
        shutil.copytree(MODEL, model)
        before = sorted(path.name for path in model.iterdir())
        job(["the base's directory"], self.job(save={"dir": str(model)}), base=str(model))
        self.assertEqual(sorted(path.name for path in model.iterdir()), before)
        (self.dir / "link").symlink_to(self.dir)
        job(["both write to"], self.job(save={"dir": str(self.dir / "out/x")}), self.job("b", save={"dir": str(self.dir / "link/out/x")}))
        for own in ("best", "checkpoints"):
            job([f"keeps its {own}"], self.job(save={"dir": str(self.dir / "out")}), self.job(own))
        # Any file of JSON lines but one of metrics.
        data = self.data.read_bytes()
        done = self.train(self.jobs(self.job(), metrics=str(self.data)), code=1)
        self.assertIn("is not a metrics file", done.stderr)
        self.assertEqual(self.data.read_bytes(), data)

    def test_pipes_are_refused_not_waited_for(self):
        pipe = self.dir / "pipe"
        os.mkfifo(pipe)
        self.refused(self.jobs(self.job(data={"path": str(pipe)})), words=["pipe is not a regular file"])
        self.refused(str(pipe), words=["pipe is not a regular file"])

    def test_an_adapter_of_somebody_else_is_not_overwritten(self):
        out = self.dir / "out" / "a"
        out.mkdir(parents=True)
        (out / "adapter_model.safetensors").write_text("precious")
        done = self.train(self.jobs(self.job()), code=1)
        self.assertIn("holds an adapter that is not of this run", done.stderr)
        self.assertEqual([path.name for path in out.iterdir()], ["adapter_model.safetensors"])
        self.assertEqual((out / "adapter_model.safetensors").read_text(), "precious")

    def test_data_that_changes_fails_its_job_alone(self):
        other = self.write("other.jsonl", [talk("a", "b")] * 10)
        file = self.jobs(self.job(train={"steps": 100000}), self.job("b", data={"path": str(other)}, train={"steps": 30}))
        process = self.start(file)
        self.wait_for(lambda: len(self.steps()) > 1, process)
        with other.open("a") as out:
            out.write("{}\n")
        self.wait_for(lambda: "b: failed" in self.log(), process)
        self.wait_for(lambda: len(self.steps()) > 20, process)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 1)
        self.assertIn("other.jsonl has changed since it was opened", self.log())
        self.assertIn("a: stopped; checkpoint of step", self.log())
        self.assertFalse((self.dir / "out/b/adapter_model.safetensors").exists())


class Interruptions(Train):
    def lasting(self):
        job = self.job(adapter={"dropout": 0.1}, train={"steps": 40, "schedule": "cosine", "warmup_steps": 5},
                       data={"eval_split": 0.2}, eval={"every": 10}, save={"every": 3})
        other = self.job("b", adapter={"kind": "dora", "rank": 3}, train={"steps": 25, "batch_samples": 5}, save={"every": 2})
        return self.jobs(job, other)

    def uninterrupted(self):
        file = self.lasting()
        self.train(file)
        result = {job: (self.adapter(job), [line["loss"] for line in self.steps(job)]) for job in ("a", "b")}
        shutil.rmtree(self.dir / "out")
        return file, result

    def check_same(self, expected):
        for job, (adapter, losses) in expected.items():
            self.assertEqual(self.adapter(job), adapter)
            self.assertEqual([line["step"] for line in self.steps(job)], list(range(1, len(losses) + 1)))
            self.assertEqual([line["loss"] for line in self.steps(job)], losses)

    def test_killed_at_any_point_it_goes_on_bit_for_bit(self):
        file, expected = self.uninterrupted()
        rng, kills = random.Random(1), 0
        while kills < 200:
            process = self.start(file)
            try:
                process.wait(0.05 + 0.4 * rng.random() + 0.02 * kills)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                continue
            self.assertEqual(process.returncode, 0, self.log())
            break
        self.assertGreater(kills, 0)
        self.check_same(expected)

    def test_sigterm_checkpoints_and_ends_well(self):
        file, expected = self.uninterrupted()
        for steps in (1, 7):
            process = self.start(file)
            self.wait_for(lambda: len(self.steps()) >= steps, process)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(60), 0, self.log())
            self.assertIn("a: stopped; checkpoint of step", self.log())
        self.train(file)
        self.check_same(expected)

    def test_checkpoints_of_something_else_are_refused(self):
        self.train(self.jobs(self.job(save={"every": 2})))
        before = {path: path.read_bytes() for path in (self.dir / "out").rglob("*") if path.is_file()}

        def refused(file, *words):
            done = self.train(file, code=1)
            for word in ("job a", *words):
                self.assertIn(word, done.stderr)
            self.assertEqual({path: path.read_bytes() for path in (self.dir / "out").rglob("*") if path.is_file()}, before)

        refused(self.jobs(self.job(train={"lr": 2e-3})), "another job")
        refused(self.jobs(self.job(data={"path": str(self.write("x.jsonl", [talk("x", "y")]))})), "other data")
        model = self.dir / "model"
        shutil.copytree(MODEL, model)
        weights = bytearray((model / "model.safetensors").read_bytes())
        weights[-2] ^= 1
        (model / "model.safetensors").write_bytes(weights)
        refused(self.jobs(self.job(), base=str(model)), "another base")

    def test_every_setting_that_changes_what_is_learnt_counts(self):
        def refused(key, first, then, **run):
            shutil.rmtree(self.dir / "out", ignore_errors=True)
            self.train(self.jobs(self.job(**first), **run.get("before", {})))
            done = self.train(self.jobs(self.job(**then), **run.get("after", {})), code=1)
            self.assertIn(f"another job ({key} differs)", done.stderr)

        refused("adapter.alpha_pattern", {}, {"adapter": {"alpha_pattern": {"q_proj": 64}}})
        refused("adapter.alpha_pattern", {"adapter": {"alpha_pattern": {"q_proj": 64}}}, {})
        # The first pattern that matches counts.
        refused("adapter.alpha_pattern", {"adapter": {"alpha_pattern": {"0.*q_proj": 3, "q_proj": 64}}},
                {"adapter": {"alpha_pattern": {"q_proj": 64, "0.*q_proj": 3}}})
        # A limit that cuts samples.
        path = str(self.write("long.jsonl", [{"text": "a b c d e f g h i j k l m n o p q r s t u v w x y z"}] * 9))
        cut = {"data": {"path": path, "long_samples": "truncate"}}
        refused("data.max_length", cut, cut, before={"block_tokens": 16}, after={"block_tokens": 32})
        # One that cuts none is no setting of the job.
        shutil.rmtree(self.dir / "out")
        self.train(self.jobs(self.job()))
        self.train(self.jobs(self.job(), block_tokens=300))

    def exploding(self):
        """An adapter whose loss is not finite on any sample."""
        directory, header, body = self.dir / "exploding", {}, b""
        for factor, shape in (("A", [2, 256]), ("B", [256, 2])):
            size = 4 * shape[0] * shape[1]
            name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{factor}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + size]}
            body += struct.pack("<f", 1e15) * (size // 4)
        text = json.dumps(header).encode()
        directory.mkdir()
        (directory / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        (directory / "adapter_config.json").write_text(json.dumps(
            {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "layers_to_transform": [0]}))
        return str(directory)

    def test_a_job_that_failed_stays_failed(self):
        bad = {"name": "a", "data": {"path": str(self.data)}, "adapter": {"init_from": self.exploding()},
               "train": {"steps": 3, "batch_samples": 2}}
        for _ in range(2):
            done = self.train(self.jobs(bad), code=1)
            self.assertIn("3 steps in a row without a finite loss", done.stderr)
            self.assertFalse((self.dir / "out/a/adapter_model.safetensors").exists())

    def test_half_an_adapter_is_no_result(self):
        file = self.jobs(self.job())
        self.train(file)
        expected = (self.dir / "out/a/adapter_config.json").read_text()
        (self.dir / "out/a/adapter_config.json").unlink()
        self.train(file)
        self.assertEqual((self.dir / "out/a/adapter_config.json").read_text(), expected)

    def test_the_best_adapter_is_kept_from_when_it_is_wanted(self):
        # Nothing moves at this rate, so no evaluation is better than the first.
        def job(keep_best):
            return self.jobs(self.job(data={"eval_split": 0.2}, eval={"every": 2, "keep_best": keep_best}, train={"lr": 1e-30}))

        self.train(job(False))
        (self.dir / "out/a/adapter_model.safetensors").unlink()
        done = self.train(job(True))
        self.assertIn("the adapter of step 2, its best evaluation, was not kept (keep_best was off); the last one is", done.stderr)
        self.assertTrue((self.dir / "out/a/adapter_model.safetensors").exists())

    def test_sigterm_does_not_wait_for_an_evaluation(self):
        held = self.write("held.jsonl", [{"text": f"the cat sat on {n} mats " * 8} for n in range(4000)])
        job = self.job(data={"eval_path": str(held)}, eval={"every": 2})
        process = self.start(self.jobs(job))
        self.wait_for(lambda: len(self.steps()) >= 2, process)
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 0, self.log())
        self.assertIn("stopped; checkpoint of step 2", self.log())
        self.assertNotIn("evaluation at step", self.log())
        # The evaluation comes first when it goes on.
        process = self.start(self.jobs(job))
        self.wait_for(lambda: "goes on from step 2" in self.log(), process)
        time.sleep(1)
        self.assertEqual(len(self.steps()), 2, self.log())
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 0, self.log())

    def test_sigterm_is_noticed_while_data_is_read(self):
        # So much that reading takes longer than sending a signal; it is sent once the file is open.
        big = self.write("big.jsonl", [talk(f"What follows {n}?", f"{n + 1} does.") for n in range(400_000)])
        file = self.jobs(self.job(data={"path": str(big)}))

        def is_open(process):
            try:
                files = f"/proc/{process.pid}/fd"
                return any(os.readlink(f"{files}/{number}") == os.path.realpath(big) for number in os.listdir(files))
            except OSError:  # a file that was closed meanwhile
                return False

        for arguments, code in (((file,), 0), ((file, "--check"), 1), ((file, "--preview", "1000000"), 1)):
            process = self.start(*arguments)
            self.wait_for(lambda: is_open(process), process)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(60), code, self.log())
            self.assertIn("stopped before anything was trained" if code == 0 else "interrupted", self.log())
            self.assertFalse((self.dir / "out").exists())

    def test_damaged_checkpoints_fall_back_to_the_one_before(self):
        file = self.jobs(self.job(save={"every": 2}))
        self.train(file)
        expected = self.adapter()
        newest = max((self.dir / "out/a/checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
        with (newest / "trainer_state.safetensors").open("r+b") as out:
            out.truncate(100)
        done = self.train(file)
        self.assertIn("goes on from step 4", done.stderr)
        self.assertEqual(self.adapter(), expected)

    def test_a_full_disk_pauses_one_job_while_others_go_on(self):
        # Files of more than 200 kB cannot be written: that is the state of `large`.
        large = self.job("large", adapter={"rank": 32}, save={"every": 2})
        late = self.job("late", adapter={"rank": 32}, train={"steps": 3})  # saved at the end only
        small = self.job("small", adapter={"rank": 1, "target_modules": ["q_proj"]}, train={"steps": 12}, save={"every": 2})
        file = self.jobs(large, small, late)
        self.train(file)
        expected = {job: self.adapter(job) for job in ("large", "small", "late")}
        shutil.rmtree(self.dir / "out")

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))

        # Python ignores SIGXFSZ, and leaves it so here: a write past the limit fails.
        process = self.start(file, preexec_fn=limit, restore_signals=False)
        self.wait_for(lambda: "large: paused at step 2" in self.log(), process)
        self.wait_for(lambda: "small: done at step 12" in self.log(), process)
        self.wait_for(lambda: "late: waits" in self.log(), process)
        self.assertEqual(self.adapter("small"), expected["small"])
        # Stopped now, it says what was not saved.
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(60), 1, self.log())
        self.assertIn("large: checkpoint of step 2", self.log())
        self.assertEqual(list((self.dir / "out/large/checkpoints").iterdir()), [])
        # With room again the paused job goes on by itself.
        process = self.start(file, preexec_fn=limit, restore_signals=False)
        self.wait_for(lambda: "large: paused at step 2" in self.log(), process)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        self.assertEqual(process.wait(120), 0, self.log())
        self.assertEqual({job: self.adapter(job) for job in expected}, expected)

    def test_what_waiting_does_not_mend_fails_its_job_alone(self):
        # A file where a job wants a directory: of its best adapter, to be finished or on the way.
        for save in ({}, {"every": 2}):
            # Nothing moves at this rate, so no evaluation is better than the first.
            blocked = self.job("blocked", data={"eval_split": 0.2}, eval={"every": 2}, train={"lr": 1e-30}, save=save)
            (self.dir / "out/blocked/best").mkdir(parents=True)
            (self.dir / "out/blocked/best/checkpoint-2").write_text("")
            done = self.train(self.jobs(blocked, self.job()), code=1)
            self.assertIn("1 of 2 jobs failed", done.stderr)
            self.assertIn("out/blocked/best/checkpoint-2", done.stderr)
            self.assertIn("a: done at step 6", done.stderr)
            self.assertFalse((self.dir / "out/blocked/adapter_model.safetensors").exists())
            shutil.rmtree(self.dir / "out")

    def test_a_file_where_the_best_adapter_goes_is_found_before_anything_is_trained(self):
        (self.dir / "out/blocked").mkdir(parents=True)
        (self.dir / "out/blocked/best").write_text("")
        blocked = self.job("blocked", data={"eval_split": 0.2}, eval={"every": 2})
        done = self.train(self.jobs(blocked, self.job()), code=1)
        self.assertIn("out/blocked/best", done.stderr)
        self.assertFalse((self.dir / "out/a/adapter_model.safetensors").exists())

    def test_two_runs_in_one_directory_do_not_meet(self):
        file = self.jobs(self.job(train={"steps": 100000}, save={"every": 1000}))
        process = self.start(file)
        self.wait_for(lambda: len(self.steps()) > 0, process)
        done = self.train(file, code=1)
        self.assertIn("is written to by another run", done.stderr)
        self.assertIsNone(process.poll())


if __name__ == "__main__":
    unittest.main()
