#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of names on the hub, against a stand-in of it. Usage: pull_test.py BINARY"""
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "hub"))
from stand_in import Hub, git_sha1  # noqa: E402

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
DEMO = pathlib.Path("examples/demo").resolve()
if b"without libcurl" in pathlib.Path(BINARY).read_bytes():
    print("SKIPPED: this build has no libcurl")
    sys.exit(77)


def directory(path: pathlib.Path) -> dict:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


MODEL = directory(DEMO / "model")
ADAPTER = {name: data for name, data in directory(DEMO / "adapters" / "sql").items()}
# What repositories have beside what is read of them.
CLUTTER = {".gitattributes": b"*.bin filter=lfs\n", "README.md": b"# A model\n", "modeling_x.py": b"import os\n", "pytorch_model.bin": b"\x80\x02.",
           "training_args.bin": b"\x80\x02.", "onnx/model.onnx": b"onnx", "original/consolidated.00.pth": b"PK", "tokenizer.model": b"sp",
           "optimizer.pt": b"\x80", "model.fp16.safetensors": b"another", "vocab.json": b"{}"}
BIG = bytes(range(256)) * 4096  # 1 MiB


class Pull(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir)
        self.hub = Hub()
        self.addCleanup(self.hub.close)
        self.home = os.path.join(self.dir, "hf")
        self.cache = pathlib.Path(self.home, "hub")
        self.environment = {"PATH": os.environ["PATH"], "HOME": self.dir, "HF_HOME": self.home, "HF_ENDPOINT": self.hub.url,
                            "LORIKEET_STATE": os.path.join(self.dir, "state.db")}

    def run_it(self, *args: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess:
        return subprocess.run([BINARY, *args], capture_output=True, text=True, timeout=timeout, check=False, cwd=self.dir,
                              env={**self.environment, **variables})

    def good(self, *args: str, **variables: str) -> subprocess.CompletedProcess:
        done = self.run_it(*args, **variables)
        self.assertEqual(done.returncode, 0, (args, done.stderr))
        return done

    def pulled(self, name: str, **variables: str) -> pathlib.Path:
        return pathlib.Path(self.good("pull", name, **variables).stdout.strip())

    def refused(self, *args: str, words: tuple = (), **variables: str) -> str:
        done = self.run_it(*args, **variables)
        self.assertEqual(done.returncode, 1, (args, done.stdout, done.stderr))
        self.assertTrue(done.stderr.strip().splitlines()[-1].startswith("lorikeet: "), done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        return done.stderr

    def repo(self, name: str) -> pathlib.Path:
        return self.cache / ("models--" + name.replace("/", "--"))


class Layout(Pull):
    def test_a_model_lies_where_the_python_client_would_put_it(self):
        commit = self.hub.add("acme/tiny", MODEL | CLUTTER)
        snapshot = self.pulled("acme/tiny")
        self.assertEqual(snapshot, self.repo("acme/tiny") / "snapshots" / commit)
        self.assertEqual(directory(snapshot), MODEL)
        for name, data in MODEL.items():
            etag = hashlib.sha256(data).hexdigest() if name.endswith(".safetensors") else git_sha1(data)
            self.assertEqual(os.readlink(snapshot / name), f"../../blobs/{etag}")
            self.assertTrue((self.cache / ".locks" / "models--acme--tiny" / f"{etag}.lock").is_file())
        self.assertEqual((self.repo("acme/tiny") / "refs" / "main").read_text(), commit)
        self.assertTrue((self.cache / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55"))
        self.assertTrue((self.repo("acme/tiny") / ".no_exist" / commit / "chat_template.jinja").is_file())
        self.assertEqual(len(list((self.repo("acme/tiny") / "blobs").iterdir())), len(MODEL))
        for clutter in CLUTTER:
            self.assertEqual([r for r in self.hub.requests if r.path.endswith(clutter)], [])

        before = len(self.hub.of_files())
        done = self.good("pull", "acme/tiny")
        self.assertIn("everything is there", done.stderr)
        self.assertEqual(len(self.hub.of_files()), before)

    def test_only_the_shards_that_the_index_names(self):
        index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode()
        files = {"config.json": b"{}", "model.safetensors.index.json": index, "model-00001-of-00002.safetensors": BIG, "model-00002-of-00002.safetensors": BIG[::-1],
                 "model-00003-of-00003.safetensors": b"old"}
        self.hub.add("acme/sharded", files)
        snapshot = self.pulled("acme/sharded")
        self.assertEqual(set(directory(snapshot)), set(files) - {"model-00003-of-00003.safetensors"})

    def test_a_file_that_two_names_have_comes_once(self):
        index = json.dumps({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}).encode()
        self.hub.add("acme/twice", {"config.json": b"{}", "model.safetensors.index.json": index, "a.safetensors": BIG, "b.safetensors": BIG})
        snapshot = self.pulled("acme/twice")
        self.assertEqual((snapshot / "a.safetensors").read_bytes(), (snapshot / "b.safetensors").read_bytes())
        self.assertEqual(len(self.hub.gets(port=self.hub.ports[1])), 1)

    def test_templates_and_pooling_come_with_their_folders(self):
        self.hub.add("acme/embedder", MODEL | {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "additional_chat_templates/rag.jinja": b"{{ messages }}",
                                               "additional_chat_templates/deep/x.jinja": b"no", "2_Dense/model.safetensors": b"no"})
        snapshot = self.pulled("acme/embedder")
        self.assertEqual(set(directory(snapshot)) - set(MODEL), {"modules.json", "1_Pooling/config.json", "additional_chat_templates/rag.jinja"})
        self.assertTrue(os.readlink(snapshot / "1_Pooling" / "config.json").startswith("../../../blobs/"))

    def test_revisions(self):
        first = self.hub.add("acme/tiny", MODEL)
        second = self.hub.commit("acme/tiny", MODEL | {"tokenizer_config.json": b"{}"})
        branch = self.hub.commit("acme/tiny", MODEL | {"added_tokens.json": b"{}"}, branch="feature/x")
        pull_request = self.hub.commit("acme/tiny", MODEL | {"added_tokens.json": b"{ }"}, branch="refs/pr/7")
        self.assertEqual(self.pulled("acme/tiny").name, second)
        self.assertEqual(self.pulled("acme/tiny@feature/x").name, branch)
        self.assertEqual(self.pulled("acme/tiny@refs/pr/7").name, pull_request)
        self.assertEqual(self.pulled(f"hf://acme/tiny@{first}").name, first)
        refs = self.repo("acme/tiny") / "refs"
        self.assertEqual({str(file.relative_to(refs)) for file in refs.rglob("*") if file.is_file()}, {"main", "feature/x", "refs/pr/7"})
        # Moved on: the new commit, of which only what is new is fetched.
        third = self.hub.commit("acme/tiny", MODEL | {"tokenizer_config.json": b"{\"a\": 1}"})
        before = len(self.hub.gets(end=".safetensors"))
        self.assertEqual(self.pulled("acme/tiny").name, third)
        self.assertEqual(len(self.hub.gets(end=".safetensors")), before)

    def test_a_subfolder(self):
        self.hub.add("acme/runs", {f"out/checkpoint-10/{name}": data for name, data in ADAPTER.items()} | {"config.json": b"{}"})
        self.assertEqual(set(directory(self.pulled("acme/runs/out/checkpoint-10"))), set(ADAPTER) - {"README.md"})
        self.refused("pull", "acme/runs/out/checkpoint-20", words=("no files",))

    def test_list(self):
        commit = self.hub.add("acme/tiny", MODEL)
        self.pulled("acme/tiny")
        text = self.good("pull", "--list").stdout
        self.assertIn("acme/tiny", text)
        self.assertIn("main " + commit[:12], text)


class Names(Pull):
    def test_a_hub_name_works_wherever_a_directory_does(self):
        self.hub.add("acme/tiny", MODEL)
        self.hub.add("bob/sql", ADAPTER | CLUTTER)
        self.assertIn("checkpoint", self.good("inspect", "acme/tiny").stdout)
        by_name = self.good("generate", "acme/tiny", "--lora", "sql=bob/sql", "--adapter", "sql", "--prompt", "Who", "--max-tokens", "4", "--threads", "1").stdout
        by_path = self.good("generate", str(DEMO / "model"), "--lora", f"sql={DEMO}/adapters/sql", "--adapter", "sql", "--prompt", "Who", "--max-tokens", "4",
                            "--threads", "1").stdout
        self.assertEqual(by_name, by_path)
        self.assertIn("fits", self.good("adapter", "verify", "bob/sql", "--base", "acme/tiny").stdout)
        self.good("adapter", "convert", "bob/sql", "--base", "acme/tiny", "--out", "converted")
        self.good("merge", "acme/tiny", "bob/sql", "merged")
        self.good("federate", "aggregate", "bob/sql", "--base", "acme/tiny", "--out", "averaged")
        self.assertEqual(json.loads(pathlib.Path(self.dir, "averaged/adapter_config.json").read_text())["base_model_name_or_path"], "acme/tiny")

    def test_a_batch_by_name(self):
        self.hub.add("acme/tiny", MODEL)
        body = {"model": "acme/tiny", "prompt": "Who", "max_tokens": 4}
        pathlib.Path(self.dir, "in.jsonl").write_text(json.dumps({"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}) + "\n")
        self.good("batch", "acme/tiny", "in.jsonl", "out.jsonl", "--threads", "1", "--memory", "64MiB")
        answer = json.loads(pathlib.Path(self.dir, "out.jsonl").read_text())["response"]
        self.assertEqual((answer["status_code"], answer["body"]["model"]), (200, "acme/tiny"))

    def test_training_names_the_base_as_it_was_written(self):
        self.hub.add("acme/tiny", MODEL)
        self.hub.add("bob/sql", ADAPTER)
        pathlib.Path(self.dir, "data.jsonl").write_text('{"prompt": "Who?", "completion": "Me."}\n' * 4)
        pathlib.Path(self.dir, "jobs.yaml").write_text(
            "base: acme/tiny\noutput: out\nthreads: 1\njobs:\n  - name: a\n    data: {path: data.jsonl}\n    adapter: {init_from: bob/sql}\n    train: {steps: 1}\n")
        self.good("train", "jobs.yaml")
        self.assertEqual(json.loads(pathlib.Path(self.dir, "out/a/adapter_config.json").read_text())["base_model_name_or_path"], "acme/tiny")

    def test_an_existing_directory_is_meant_first(self):
        self.hub.add("acme/tiny", {"config.json": b"{}", "model.safetensors": b"no"})
        shutil.copytree(DEMO / "model", pathlib.Path(self.dir, "acme/tiny"))
        self.good("inspect", "acme/tiny")
        self.assertEqual(self.hub.requests, [])
        self.refused("inspect", "hf://acme/tiny")
        self.assertNotEqual(self.hub.requests, [])

    def test_paths_are_never_looked_up(self):
        for path in ("./acme/tiny", "/acme/tiny", "../acme/tiny", "tiny", "acme/tiny/", "acme//tiny", "acme/.hidden", "a--b/c", "acme/tiny.git"):
            self.refused("inspect", path)
        self.assertEqual(self.hub.requests, [])
        self.refused("pull", "../etc/passwd", words=("is no name on the hub",))
        self.refused("pull", "acme/tiny@../../x", words=("is no name on the hub",))

    def test_a_server_is_called_as_the_hub_has_it_and_a_check_downloads_nothing(self):
        self.hub.add("acme/tiny", MODEL)
        check = ("serve", "acme/tiny", "--port", "0", "--no-state", "--threads", "1", "--check-config")
        done = self.run_it(*check)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("downloads nothing: run `lorikeet pull acme/tiny` first", done.stderr)
        self.assertNotIn("OFFLINE", done.stderr)
        self.assertEqual(self.hub.requests, [])
        self.pulled("acme/tiny")
        self.good(*check)
        server = subprocess.Popen([BINARY, "serve", "acme/tiny", "--port", "0", "--no-state", "--threads", "1", "--memory", "64MiB"], stderr=subprocess.PIPE, text=True,
                                  env=self.environment, cwd=self.dir)
        try:
            line = next(line for line in server.stderr if " serves " in line)
        finally:
            server.terminate()
            server.communicate(timeout=60)
        self.assertIn("serves acme/tiny with", line)

    def test_what_is_wrong_elsewhere_is_said_before_anything_is_downloaded(self):
        self.hub.add("acme/tiny", MODEL)
        self.refused("serve", "acme/tiny", "--tls-cert", "x.pem", "--no-state")
        self.assertEqual(self.hub.of_files(), [])

    def test_only_what_is_needed_of_a_repository_that_is_both(self):
        self.hub.add("acme/both", MODEL | ADAPTER)
        self.good("adapter", "verify", "acme/both", "--base", str(DEMO / "model"))
        self.assertEqual(self.hub.gets(end="/model.safetensors"), [])
        self.good("inspect", "acme/both")
        self.assertEqual(len(self.hub.gets(end="/adapter_model.safetensors", port=self.hub.ports[1])), 1)
        self.assertEqual(len(self.hub.gets(end="/model.safetensors", port=self.hub.ports[1])), 1)


class Trouble(Pull):
    def setUp(self):
        super().setUp()
        self.commit = self.hub.add("acme/big", {"config.json": b"{}", "model.safetensors": BIG})
        self.faults = self.hub.repos["acme/big"].faults
        self.etag = hashlib.sha256(BIG).hexdigest()
        self.blobs = self.repo("acme/big") / "blobs"

    def check(self, snapshot: pathlib.Path):
        self.assertEqual((snapshot / "model.safetensors").read_bytes(), BIG)
        self.assertEqual(sorted(p.name for p in self.blobs.iterdir()), sorted([self.etag, git_sha1(b"{}")]))

    def ranges(self) -> list:
        return [r.range for r in self.hub.gets(port=self.hub.ports[1])]

    def test_an_answer_that_is_cut_off_goes_on_where_it_ended(self):
        self.faults["model.safetensors"] = [300000, 200000, "503"]
        self.check(self.pulled("acme/big"))
        self.assertEqual(self.ranges(), ["", "bytes=300000-", "bytes=500000-", "bytes=500000-"])

    def test_a_storage_that_knows_no_ranges(self):
        self.faults["model.safetensors"] = [300000, "no range"]
        self.check(self.pulled("acme/big"))

    def test_killed_in_the_middle_and_begun_again(self):
        self.hub.gate.clear()
        process = subprocess.Popen([BINARY, "pull", "acme/big"], env=self.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        half = self.blobs / (self.etag + ".incomplete")
        deadline = time.monotonic() + 60
        while not (half.is_file() and half.stat().st_size >= len(BIG) // 2):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        process.kill()
        process.wait()
        self.assertFalse((self.repo("acme/big") / "snapshots").exists())  # nobody takes it for whole
        self.hub.gate.set()
        self.check(self.pulled("acme/big"))
        self.assertEqual(self.ranges()[-1], f"bytes={len(BIG) // 2}-")

    def test_two_at_a_time_download_once(self):
        self.hub.gate.clear()
        processes = [subprocess.Popen([BINARY, "pull", "acme/big"], env=self.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        # Both have asked what the file is; one of them has it now.
        deadline = time.monotonic() + 60
        while len([r for r in self.hub.requests if r.method == "HEAD" and r.path.endswith(".safetensors")]) < 2 or not self.ranges():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        self.hub.gate.set()
        for process in processes:
            out, err = process.communicate(timeout=60)
            self.assertEqual(process.returncode, 0, err)
            self.check(pathlib.Path(out.strip()))
        self.assertEqual(self.ranges(), [""])

    def test_the_first_failure_ends_who_waits_for_a_lock(self):
        locks = self.cache / ".locks" / "models--acme--big"
        locks.mkdir(parents=True)
        with (locks / f"{self.etag}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # never given up while the pull runs
            self.faults["config.json"] = ["wrong", "wrong"]
            self.refused("pull", "acme/big", words=(git_sha1(b"{}"), "digest"))

    def test_wrong_bytes_are_not_kept(self):
        self.faults["model.safetensors"] = ["wrong"]
        self.refused("pull", "acme/big", words=(self.etag, "digest"))
        self.assertFalse((self.blobs / self.etag).exists())
        self.assertFalse((self.repo("acme/big") / "snapshots").exists())
        shutil.rmtree(self.cache)
        self.faults["config.json"] = ["wrong"]
        self.refused("pull", "acme/big", words=(git_sha1(b"{}"),))
        self.check(self.pulled("acme/big"))

    def test_wrong_bytes_of_an_earlier_try_are_fetched_again(self):
        self.blobs.mkdir(parents=True)
        (self.blobs / (self.etag + ".incomplete")).write_bytes(b"wrong")
        done = self.good("pull", "acme/big")
        self.assertIn("once more", done.stderr)
        self.assertEqual(self.ranges(), ["bytes=5-", ""])
        for size in (len(BIG), len(BIG) + 1):  # all there, or more
            (self.blobs / self.etag).unlink()
            shutil.rmtree(self.repo("acme/big") / "snapshots")
            (self.blobs / (self.etag + ".incomplete")).write_bytes(b"x" * size)
            self.check(self.pulled("acme/big"))

    def test_a_blob_that_is_too_short_is_fetched_again(self):
        snapshot = self.pulled("acme/big")
        shutil.rmtree(snapshot)
        os.truncate(self.blobs / self.etag, 1000)
        self.check(self.pulled("acme/big"))

    def test_too_many_requests_and_a_hub_that_is_not_well(self):
        self.hub.repos["acme/big"].listing_faults = [(503, {}), (429, {"Retry-After": "1"})]
        self.faults["config.json"] = ["500"]
        done = self.good("pull", "acme/big")
        self.assertIn("answers 429", done.stderr)
        self.assertIn("another try in", done.stderr)
        self.hub.repos["acme/big"].listing_faults = [(429, {"RateLimit": '"api";r=0;t=3600'})]
        done = self.good("pull", "acme/big")
        self.assertIn("going on with commit", done.stderr)
        shutil.rmtree(self.cache)
        self.hub.repos["acme/big"].listing_faults = [(429, {"RateLimit": '"api";r=0;t=3600'})]
        self.refused("pull", "acme/big", words=("429",))

    def test_who_does_not_let_us_in(self):
        repo = self.hub.repos["acme/big"]
        repo.gated = True
        self.refused("pull", "acme/big", words=("gated", "accept its licence at", f"{self.hub.url}/acme/big", "HF_TOKEN"))
        self.check(self.pulled("acme/big", HF_TOKEN="hf_right"))
        repo.gated = "waiting"
        shutil.rmtree(self.cache)
        self.refused("pull", "acme/big", words=("gated", "the token in HF_TOKEN must be of the account"), HF_TOKEN="hf_right")
        self.refused("pull", "acme/big", words=("does not accept the token in HF_TOKEN",), HF_TOKEN="hf_wrong")
        self.refused("pull", "acme/none", words=("acme/none is not on", "HF_TOKEN"))
        self.refused("pull", "acme/big@v9", words=('no revision "v9"',))
        self.refused("inspect", "acme/none", words=("no directory here",))
        # The file that `hf auth login` writes.
        repo.gated, repo.private = False, True
        self.refused("pull", "acme/big", words=("private",))
        pathlib.Path(self.home, "token").write_text("hf_right\n")
        self.refused("pull", "acme/big", words=("private",), HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
        self.check(self.pulled("acme/big"))
        # The token went to the hub, and nowhere else.
        self.assertEqual({r.token for r in self.hub.requests if r.port == self.hub.ports[1]}, {""})

    def test_a_renamed_repository(self):
        self.hub.add("old/big", {}, renamed_to="acme/big")
        snapshot = self.pulled("old/big")
        self.assertEqual(snapshot, self.repo("old/big") / "snapshots" / self.commit)
        self.assertEqual((snapshot / "model.safetensors").read_bytes(), BIG)

    def test_offline(self):
        self.refused("pull", "acme/big", words=("not in the cache", "HF_HUB_OFFLINE is set"), HF_HUB_OFFLINE="1")
        self.refused("pull", "acme/big", words=("not in the cache", "TRANSFORMERS_OFFLINE is set"), TRANSFORMERS_OFFLINE="1")
        self.assertEqual(self.hub.requests, [])
        self.pulled("acme/big")
        count = len(self.hub.requests)
        for variables in ({"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "yes"}):
            self.check(self.pulled("acme/big", **variables))
            self.check(self.pulled(f"acme/big@{self.commit}", **variables))
        self.assertEqual(len(self.hub.requests), count)
        self.hub.close()
        done = self.good("pull", "acme/big")
        self.assertIn("going on with commit", done.stderr)
        self.check(pathlib.Path(done.stdout.strip()))

    def test_a_snapshot_with_files_missing_is_not_taken_for_whole(self):
        snapshot = self.pulled("acme/big")
        (snapshot / "model.safetensors").unlink()
        self.refused("pull", "acme/big", words=("no model.safetensors",), HF_HUB_OFFLINE="1")
        self.check(self.pulled("acme/big"))
        (self.blobs / self.etag).unlink()  # the link leads nowhere
        self.refused("pull", "acme/big", words=("no model.safetensors",), HF_HUB_OFFLINE="1")
        self.check(self.pulled("acme/big"))

    def test_folders_that_could_have_been_meant_are_named(self):
        self.hub.add("acme/ck", {f"checkpoint-{step}/{name}": b"x" for step in (10, 20) for name in ("adapter_config.json", "adapter_model.safetensors")} | {"README.md": b"x"})
        self.refused("pull", "acme/ck", words=("acme/ck/checkpoint-10, acme/ck/checkpoint-20",))
        self.assertTrue((self.pulled("acme/ck/checkpoint-10") / "adapter_config.json").is_file())

    def test_what_is_neither(self):
        self.hub.add("acme/pickled", {"config.json": b"{}", "pytorch_model.bin": b"\x80"})
        self.refused("pull", "acme/pickled", words=("pickles", "no model.safetensors"))
        self.hub.add("acme/gguf", {"model-q4.gguf": b"GGUF"})
        self.refused("pull", "acme/gguf", words=("GGUF",))
        self.hub.add("acme/none", {"README.md": b""})
        self.refused("pull", "acme/none", words=("neither a model nor an adapter",))

    def test_no_room(self):
        self.hub.repos["acme/big"].head["model.safetensors"] = {"X-Linked-Size": str(1 << 43)}
        self.refused("pull", "acme/big", words=("more in", "are free", "HF_HUB_CACHE"))
        self.assertEqual(self.hub.gets(port=self.hub.ports[1]), [])


class Attacks(Pull):
    """Of somebody who is, or stands in front of, the hub; of somebody who may write into the cache."""

    def setUp(self):
        super().setUp()
        self.commit = self.hub.add("acme/big", {"config.json": b"{}", "model.safetensors": BIG})
        self.it = self.hub.repos["acme/big"]
        self.etag = hashlib.sha256(BIG).hexdigest()
        self.victim = pathlib.Path(self.dir, "victim")
        self.victim.write_bytes(b"precious")

    def outside(self) -> set:
        return {str(p.relative_to(self.dir)) for p in pathlib.Path(self.dir).rglob("*") if not str(p.relative_to(self.dir)).startswith("hf/hub/")}

    def test_names_in_the_listing(self):
        self.it.listed = ["../../../../victim", "/etc/passwd", "additional_chat_templates/../../x.jinja", "additional_chat_templates/..\\x.jinja", "a\x00b", "", ".",
                          "additional_chat_templates/.jinja", "additional_chat_templates/\u202ex.jinja"]
        before = self.outside() | {"hf", "hf/hub"}
        self.pulled("acme/big")
        self.assertEqual(self.outside(), before)

    def test_names_in_the_index(self):
        for name in ("../../../../../victim", "/etc/passwd", "a/b.safetensors", "run.py", ".safetensors", 7):
            self.hub.add("acme/index", {"config.json": b"{}", "model.safetensors.index.json": json.dumps({"weight_map": {"a": name}}).encode()})
            self.refused("pull", "acme/index", words=("no plain name",))
        self.hub.add("acme/index", {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "absent.safetensors"}}'})
        self.refused("pull", "acme/index", words=("absent.safetensors",))

    def test_etags_that_are_paths(self):
        for etag in ('"../../../victim"', '"/etc/passwd"', '"a/b"', '".."', '""', '"' + "a" * 300 + '"', '"x.incomplete"', '"a b"'):
            self.it.head["config.json"] = {"ETag": etag}
            self.refused("pull", "acme/big", words=("ETag",))
        self.assertEqual(self.victim.read_bytes(), b"precious")

    def test_commits_that_are_paths(self):
        for sha in ("../../../x", "main", "", 7, "a" * 39):
            self.it.listing = json.dumps({"sha": sha, "siblings": []}).encode()
            self.refused("pull", "acme/big")
        self.it.listing = None
        self.it.head["config.json"] = {"X-Repo-Commit": "b" * 40}
        self.refused("pull", "acme/big", words=("commit",))

    def test_redirects_to_bad_places(self):
        for location in ("file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/x", "http://user:word@127.0.0.1/x", "javascript:1", "//", "http://"):
            self.it.faults["config.json"] = [(302, {"Location": location})]
            self.refused("pull", "acme/big", words=("no address",))
        self.it.faults["config.json"] = [(302, {"Location": self.hub.url + f"/acme/big/resolve/{self.commit}/config.json"})] * 50
        self.refused("pull", "acme/big", words=("redirects",))
        # To another host: without the token.
        self.it.faults["config.json"] = [(302, {"Location": f"http://127.0.0.1:{self.hub.ports[1]}/acme/big/{self.commit}/config.json"})]
        self.pulled("acme/big", HF_TOKEN="hf_right")
        self.assertEqual({r.token for r in self.hub.requests if r.port == self.hub.ports[1]}, {""})
        self.assertIn("hf_right", {r.token for r in self.hub.requests if r.port == self.hub.ports[0]})

    def test_bodies_without_an_end(self):
        self.it.faults["model.safetensors"] = ["endless"]
        self.refused("pull", "acme/big", words=("more than",))
        shutil.rmtree(self.cache)
        self.it.faults["config.json"] = ["endless"]
        self.refused("pull", "acme/big", words=("more than 2 bytes",))
        self.assertLess(sum(p.stat().st_size for p in self.cache.rglob("*") if p.is_file()), 4 * len(BIG))

    def test_lengths_that_are_lies(self):
        self.it.head["config.json"] = {"Content-Length": "10000000000000"}
        self.refused("pull", "acme/big", words=("are free",))
        self.it.head["config.json"] = {"Content-Length": "99999999999999999999999999"}
        self.refused("pull", "acme/big")

    def test_sizes_that_are_no_sizes(self):
        for size in (2**63 - 1, 2**62, 2**45):
            for path in ("config.json", "model.safetensors"):
                self.it.head[path] = {"X-Linked-Size": str(size)}
            self.refused("pull", "acme/big", words=("is said to have",))
            self.assertFalse(any(p.stat().st_size for p in self.cache.rglob("*.incomplete")))

    def test_etags_that_say_nothing_of_the_bytes(self):
        for path in ("config.json", "model.safetensors"):
            self.it.head[path] = {"ETag": '"odd"', "X-Linked-ETag": '"odd"'}
        self.refused("pull", "acme/big", words=("no digest of their bytes",))
        self.assertFalse((self.repo("acme/big") / "snapshots").exists())
        for path in ("config.json", "model.safetensors"):
            self.it.head[path] = {"ETag": f'"odd-{path}"', "X-Linked-ETag": f'"odd-{path}"'}
        self.assertIn("not checked", self.good("pull", "acme/big").stderr)

    def test_answers_that_are_bombs(self):
        for body in (b"[" * 100000, b'{"a":' * 100000, b'{"sha": "' + b"a" * (17 << 20) + b'"}', b"null", b"", b"[]", b'{"sha": 1}', b"\xff\xfe",
                     b'{"sha": "' + b"a" * 40 + b'", "siblings": {"rfilename": "x"}}', b'{"sha": "' + b"a" * 40 + b'", "siblings": [[]]}'):
            self.it.listing = body
            self.refused("pull", "acme/big")
        self.it.listing = None
        self.it.listing_faults = [(200, {f"X-{i}": "y" * 4000 for i in range(64)})]
        self.refused("pull", "acme/big", words=("headers",))

    def test_messages_of_the_hub_stay_on_their_line(self):
        self.it.listing_faults = [(403, {"X-Error-Message": "no\x1b[2J\x1b]0;title\x07"})]
        text = self.refused("pull", "acme/big")
        self.assertNotIn("\x1b", text)

    def test_links_in_the_place_of_what_is_written(self):
        blobs = self.repo("acme/big") / "blobs"
        blobs.mkdir(parents=True)
        incomplete = blobs / (self.etag + ".incomplete")
        incomplete.symlink_to(self.victim)
        self.pulled("acme/big")
        self.assertEqual(self.victim.read_bytes(), b"precious")
        shutil.rmtree(self.cache)
        blobs.mkdir(parents=True)
        os.link(self.victim, incomplete)
        self.pulled("acme/big")
        self.assertEqual(self.victim.read_bytes(), b"precious")
        self.assertEqual((blobs / self.etag).read_bytes(), BIG)
        # A ref, a lock
        shutil.rmtree(self.cache)
        refs, locks = self.repo("acme/big") / "refs", self.cache / ".locks" / "models--acme--big"
        refs.mkdir(parents=True)
        (refs / "main").symlink_to(self.victim)
        self.refused("pull", "acme/big", words=("is a link",), HF_HUB_OFFLINE="1")
        self.pulled("acme/big")
        self.assertEqual((refs / "main").read_text(), self.commit)
        shutil.rmtree(self.cache)
        locks.mkdir(parents=True)
        (locks / f"{self.etag}.lock").symlink_to(self.victim)
        self.refused("pull", "acme/big", words=("is a link",))
        # Whole directories
        elsewhere = pathlib.Path(self.dir, "elsewhere")
        elsewhere.mkdir()
        for name in ("blobs", "refs", "snapshots", ".no_exist"):
            shutil.rmtree(self.cache)
            self.repo("acme/big").mkdir(parents=True)
            (self.repo("acme/big") / name).symlink_to(elsewhere)
            self.refused("pull", "acme/big", words=("is a link",))
            self.assertEqual(list(elsewhere.iterdir()), [])
        self.assertEqual(self.victim.read_bytes(), b"precious")

    def test_snapshots_that_lead_out_of_the_cache(self):
        snapshot = self.pulled("acme/big")
        (snapshot / "tokenizer_config.json").symlink_to(self.victim)
        for variables in ({}, {"HF_HUB_OFFLINE": "1"}):
            self.refused("pull", "acme/big", words=("leads out of the cache",), **variables)
        (snapshot / "tokenizer_config.json").unlink()
        (snapshot / "additional_chat_templates").symlink_to(self.dir)
        self.refused("pull", "acme/big", words=("leads out of the cache",))
        (snapshot / "additional_chat_templates").unlink()
        # A cache on another disk, and blobs that repositories share, are fine.
        moved = pathlib.Path(self.dir, "disk")
        shutil.move(self.repo("acme/big"), moved)
        self.repo("acme/big").symlink_to(moved)
        shared = self.cache / "blobs" / "ab"
        shared.mkdir(parents=True)
        shutil.move(moved / "blobs" / self.etag, shared / ("ab" * 32))
        (moved / "blobs" / self.etag).symlink_to("../../hf/hub/blobs/ab/" + "ab" * 32)
        self.assertEqual((self.pulled("acme/big") / "model.safetensors").read_bytes(), BIG)


class Ways(Pull):
    def test_https(self):
        certificate, key = (os.path.join(self.dir, name) for name in ("cert.pem", "key.pem"))
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=hub",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        with Hub(certificate=(certificate, key)) as hub:
            hub.add("acme/small", {"config.json": b"{}", "model.safetensors": BIG}, large=("none",))
            hub.add("acme/big", {"config.json": b"{}", "model.safetensors": BIG})
            self.environment["HF_ENDPOINT"] = hub.url
            self.refused("pull", "acme/small", words=("is not trusted", "SSL_CERT_FILE"), HF_TOKEN="hf_right")
            self.assertEqual(hub.requests, [])
            self.pulled("acme/small", SSL_CERT_FILE=certificate, HF_TOKEN="hf_right")
            self.assertEqual({r.token for r in hub.requests}, {"hf_right"})
            # From HTTPS to plain HTTP: nobody would know who answers.
            self.refused("pull", "acme/big", words=("not encrypted",), SSL_CERT_FILE=certificate)
            self.assertEqual(hub.gets(port=hub.ports[1]), [])

    def test_a_proxy(self):
        self.hub.add("acme/big", {"config.json": b"{}", "model.safetensors": BIG})
        self.environment["HF_ENDPOINT"] = "http://hub.invalid"
        self.pulled("acme/big", http_proxy=self.hub.url, no_proxy="127.0.0.1")
        self.assertTrue(all(r.path.startswith("http://hub.invalid/") for r in self.hub.requests if r.port == self.hub.ports[0]))
        self.assertTrue(self.hub.gets(port=self.hub.ports[1]))


if __name__ == "__main__":
    unittest.main(verbosity=1)
