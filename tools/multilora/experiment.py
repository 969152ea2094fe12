#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""MultiLoRA (arXiv:2311.11501) against LoRA of the same total rank, on the demo's base: does it learn better, is the spectrum
of its change flatter, and does that flatness do anything? docs/results/multilora.md says what came out.

    python3 -m venv venv && venv/bin/pip install numpy matplotlib          (matplotlib for `plot` alone)
    venv/bin/python tools/multilora/experiment.py --lorikeet build/cpu-release/bin/lorikeet --work build/multilora

Stages, each kept in WORK/STAGE.json and not run again: identities, tune, tune6, train, train6, score, score6, exact, spectrum, spectrum6; then
`report` (prints the tables) and `plot`. A stage may be named alone. `lorikeet train` does all the training and all the scoring: a job that starts from an adapter
and takes one step at rate 0 changes nothing and evaluates.

Arms, for a total rank R of 6 and 24 and a scaling of 2 everywhere:
    L   LoRA of rank R                      L+  LoRA of rank R + 2: more parameters than MultiLoRA with its scaling vectors
    M   MultiLoRA, 3 modules of rank R / 3  M1  one module of rank R: MultiLoRA's initialisation and scaling vector, nothing parallel
    S0  as M, but only the scaling vectors are trained
"""
from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))
import tasks  # noqa: E402

TASKS = list(tasks.TASKS)
RANKS = (6, 24)
SEEDS = (1, 2, 3)
STEPS, TUNE_STEPS = 120, 60
SCALING = 2
PER_TASK = 4  # of each task in every batch
BATCH = PER_TASK * len(TASKS)
TRAIN = {"batch_samples": BATCH, "schedule": "cosine", "min_ratio": 0.02, "warmup_steps": 20, "betas": [0.9, 0.98], "weight_decay": 0, "clip": 1}
# One step whose rate is 0: the adapter stays as it is.
STILL = {"batch_samples": 1, "steps": 1, "warmup_steps": 1, "lr": 1e-3}
GRID = (1e-3, 3e-3, 1e-2)
LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
TUNED = ("L", "M", "M1", "S0")  # L+ takes L's rate
ARMS = ("L", "L+", "M", "M1", "S0")


def adapter_of(arm: str, rank: int) -> dict:
    def multi(modules: int) -> dict:
        return {"kind": "multilora", "num_modules": modules, "rank": rank // modules, "alpha": SCALING * rank // modules}
    return {"L": {"rank": rank, "alpha": SCALING * rank}, "L+": {"rank": rank + 2, "alpha": SCALING * (rank + 2)},
            "M": multi(3), "M1": multi(1), "S0": multi(3) | {"freeze": ["A", "B"]}}[arm]


def name_of(arm: str, rank: int, seed: int) -> str:
    return f"{arm.replace('+', 'plus')}-r{rank}-s{seed}"


# --- Files

def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        assert entry["dtype"] == "F32", (path, name, entry["dtype"])
        begin, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(data[8 + length + begin:8 + length + end], np.float32).reshape(entry["shape"])
    return tensors


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    header, begin, parts = {}, 0, []
    for name, tensor in tensors.items():
        parts.append(np.ascontiguousarray(tensor, np.float32).tobytes())
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, begin + len(parts[-1])]}
        begin += len(parts[-1])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


A_SUFFIX, B_SUFFIX = ".lora_A.weight", ".lora_B.weight"


def read_adapter(directory: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The factors (A [rank, in], B [out, rank]) of each module, scaling not included."""
    tensors = read_tensors(directory / "adapter_model.safetensors")
    return {name.removesuffix(A_SUFFIX): (tensor, tensors[name.removesuffix(A_SUFFIX) + B_SUFFIX])
            for name, tensor in tensors.items() if name.endswith(A_SUFFIX)}


def write_adapter(directory: pathlib.Path, like: pathlib.Path, factors: dict[str, tuple[np.ndarray, np.ndarray]], alpha: float) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    config = json.loads((like / "adapter_config.json").read_text())
    config |= {"r": next(iter(factors.values()))[0].shape[0], "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for module, (a, b) in factors.items():
        tensors |= {module + A_SUFFIX: a, module + B_SUFFIX: b}
    write_tensors(directory / "adapter_model.safetensors", tensors)


def checkpoint(directory: pathlib.Path, step: int | None = None) -> pathlib.Path:
    found = {int(re.search(r"(\d+)$", path.name)[1]): path for path in (directory / "checkpoints").glob("checkpoint-*")}
    return found[max(found) if step is None else step]


# --- Data

def write_records(path: pathlib.Path, examples) -> None:
    lines = ""
    for example in examples:
        messages = [{"role": "user", "content": example.user}, {"role": "assistant", "content": example.answer}]
        lines += json.dumps({"messages": messages}) + "\n"
    if not path.exists() or path.read_text() != lines:  # another stage may be reading it
        path.write_text(lines)


class Data:
    """Training files of the seeds, in the order in which they are read; validation and test files of each task."""

    def __init__(self, work: pathlib.Path) -> None:
        self.directory = work / "data"
        self.directory.mkdir(parents=True, exist_ok=True)
        trained = set()
        for seed in (0, *SEEDS):
            draws = {task: random.Random(f"multilora {task} {seed}") for task in TASKS}
            examples = [(task, tasks.draw(task, draws[task])) for _ in range(STEPS * PER_TASK) for task in TASKS]
            trained |= {(task, example.key) for task, example in examples}
            write_records(self.train(seed), (example for _, example in examples))
        for task in TASKS:
            rng, validation = random.Random(f"multilora validation {task}"), {}
            while len(validation) < 50:
                example = tasks.draw(task, rng)
                if (task, example.key) not in trained:
                    validation.setdefault(example.key, example)
            test = tasks.test_set(task)
            assert not {(task, example.key) for example in test} & trained
            write_records(self.of("validation", task), validation.values())
            write_records(self.of("test", task), test)
            write_records(self.of("test50", task), test[:50])
        write_records(self.directory / "one.jsonl", tasks.test_set("dates", 1))

    def train(self, seed: int) -> pathlib.Path:
        return self.directory / f"train-{seed}.jsonl"

    def of(self, part: str, task: str) -> pathlib.Path:
        return self.directory / f"{part}-{task}.jsonl"

    @property
    def one(self) -> pathlib.Path:
        return self.directory / "one.jsonl"


# --- lorikeet train

class Lorikeet:
    def __init__(self, args: argparse.Namespace) -> None:
        self.program, self.base, self.work, self.processes = args.lorikeet, args.base, args.work, args.processes
        self.cpu_seconds = 0.0

    def run(self, output: pathlib.Path, jobs: list[dict], dtype: str) -> dict[str, list[dict]]:
        """Trains the jobs into `output`; returns the metrics of each. Jobs do not see each other, so they may be dealt to several
        processes of one thread each."""
        groups = [jobs[index::self.processes] for index in range(self.processes)]
        with concurrent.futures.ThreadPoolExecutor(self.processes) as pool:
            list(pool.map(lambda item: self._run_group(output, *item, dtype), [item for item in enumerate(groups) if item[1]]))
        metrics: dict[str, list[dict]] = {job["name"]: [] for job in jobs}
        for index in range(len(groups)):
            path = output / f"metrics-{index}.jsonl"
            for line in path.read_text().splitlines() if path.exists() else ():
                entry = json.loads(line)
                if entry["job"] in metrics:
                    metrics[entry["job"]].append(entry)
        return metrics

    def _run_group(self, output: pathlib.Path, index: int, jobs: list[dict], dtype: str) -> None:
        output.mkdir(parents=True, exist_ok=True)
        run = {"base": str(self.base), "dtype": dtype, "block_tokens": 2048, "output": str(output), "metrics": str(output / f"metrics-{index}.jsonl"),
               "jobs": jobs}
        path = output / f"jobs-{index}.yaml"  # JSON is YAML
        path.write_text(json.dumps(run, indent=1))
        with open(output / f"log-{index}.txt", "w", encoding="utf-8") as log:
            process = subprocess.Popen([self.program, "train", "--threads", "1", str(path)], stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"lorikeet train {path}: " + (output / f"log-{index}.txt").read_text()[-2000:])
        self.cpu_seconds += usage.ru_utime + usage.ru_stime

    def score(self, adapters: dict[str, pathlib.Path | None], data: Data, part: str, exact: bool = False) -> dict[str, dict[str, dict]]:
        """Loss per token of the answers (and share of exact answers) of each adapter on each task, in f32. None is the base alone."""
        jobs = []
        for name, directory in adapters.items():
            adapter = {"init_from": str(directory)} if directory else {"rank": 1}
            for task in TASKS:
                jobs.append({"name": f"{name}.{task}", "adapter": adapter, "train": STILL, "eval": {"exact_match": exact},
                             "data": {"path": str(data.one), "eval_path": str(data.of(part, task))}})
        output = self.work / f"scoring-{os.getpid()}"
        shutil.rmtree(output, ignore_errors=True)
        scores: dict[str, dict[str, dict]] = {name: {} for name in adapters}
        for begin in range(0, len(jobs), 120):
            for job, entries in self.run(output, jobs[begin:begin + 120], "f32").items():
                name, task = job.rsplit(".", 1)
                scores[name][task] = {"loss": entries[-1]["loss"], "exact": entries[-1].get("exact_match")}
            shutil.rmtree(output)
        return scores


def macro(scores: dict[str, dict], key: str = "loss") -> float:
    return statistics.fmean(score[key] for score in scores.values())


def train_job(name: str, arm: str, rank: int, seed: int, rate: float, data: Data, steps: int) -> dict:
    return {"name": name, "adapter": adapter_of(arm, rank), "data": {"path": str(data.train(seed)), "shuffle": False},
            "train": TRAIN | {"steps": steps, "lr": rate, "seed": seed}}


# --- Stages

def identities(lk: Lorikeet, data: Data, _: dict) -> dict:
    """What must hold before anything is compared; all in f32."""
    out = lk.work / "identities"
    shutil.rmtree(out, ignore_errors=True)
    steps, rate = 8, 3e-3
    no_clip = TRAIN | {"clip": 0, "warmup_steps": 2, "steps": steps, "lr": rate, "seed": 0}
    source = {"path": str(data.train(0)), "shuffle": False}
    held = source | {"eval_path": str(data.of("validation", "sql"))}

    def job(name: str, arm: str, **more) -> dict:
        return {"name": name, "adapter": adapter_of(arm, 6), "data": source, "train": no_clip, "save": {"every": 1, "keep": 20}} | more

    still = {"train": STILL | {"seed": 0}, "data": held}
    metrics = lk.run(out, [job("lora", "L"), job("multi", "M", data=held), job("start-lora", "L", **still), job("start-multi", "M", **still)], "f32")
    result = {"zero start: loss of MultiLoRA before training minus the base's": metrics["start-multi"][-1]["loss"] - metrics["start-lora"][-1]["loss"]}

    # sigma = 1 and LoRA's own state: the next step must be LoRA's.
    for at in range(1, steps):
        directory = out / f"mz{at}"
        copy = directory / "checkpoints" / checkpoint(out / "multi", at).name
        shutil.copytree(checkpoint(out / "multi", at), copy)
        state = read_tensors(checkpoint(out / "multi", at) / "trainer_state.safetensors")
        lora = read_tensors(checkpoint(out / "lora", at) / "trainer_state.safetensors")
        state = {name: lora[name] if name in lora else np.full_like(value, name.startswith("param.")) for name, value in state.items()}
        replace_state(copy, state)
    mz = lk.run(out, [job(f"mz{at}", "M", data=held) for at in range(1, steps)], "f32")
    losses = [entry["loss"] for entry in metrics["lora"]]
    gaps, loss_gaps = [], []
    for at in range(1, steps):
        after = read_tensors(checkpoint(out / f"mz{at}", at + 1) / "trainer_state.safetensors")
        want = read_tensors(checkpoint(out / "lora", at + 1) / "trainer_state.safetensors")
        gaps.append(max(float(np.abs(after[name] - value).max()) for name, value in want.items() if name.startswith("param.")))
        first = next(entry for entry in mz[f"mz{at}"] if entry["step"] == at + 1 and "perplexity" not in entry)
        loss_gaps.append(abs(first["loss"] - losses[at]))
    result["sigma = 1 is LoRA, step by step: largest difference of a parameter"] = max(gaps)
    result["sigma = 1 is LoRA, step by step: largest difference of the loss"] = max(loss_gaps)

    # What is exported scores as what was trained; the order of the modules is nothing.
    factors = read_adapter(out / "multi")
    order = [4, 5, 0, 1, 2, 3]
    write_adapter(out / "permuted", out / "multi", {m: (a[order], b[:, order]) for m, (a, b) in factors.items()}, SCALING * 6)
    scores = lk.score({"multi": out / "multi", "permuted": out / "permuted"}, data, "validation")
    result["export: loss of the written adapter minus the trainer's own"] = scores["multi"]["sql"]["loss"] - metrics["multi"][-1]["loss"]
    result["permutation of the modules: difference of the loss"] = scores["permuted"]["sql"]["loss"] - scores["multi"]["sql"]["loss"]
    result |= gradient_check(lk, out, lambda name: job(name, "M", data=held))
    shutil.rmtree(out)
    return result


def replace_state(directory: pathlib.Path, state: dict[str, np.ndarray]) -> None:
    """Puts other parameters and moments into a checkpoint."""
    path, manifest = directory / "trainer_state.safetensors", directory / "checkpoint.json"
    write_tensors(path, state)
    data, listed = path.read_bytes(), json.loads(manifest.read_text())
    for entry in listed["files"]:
        if entry["name"] == path.name:
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(listed))


def gradient_check(lk: Lorikeet, out: pathlib.Path, job) -> dict:
    """The trainer's gradients of sigma, A and B against central differences of its loss along them, in the middle of a run."""
    at, change_of_loss = 4, 1e-3
    state = read_tensors(checkpoint(out / "multi", at) / "trainer_state.safetensors")
    state = {name: value if name.startswith("param.") else np.zeros_like(value) for name, value in state.items()}

    def run(variants: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
        for name, change in variants.items():
            copy = out / name / "checkpoints" / checkpoint(out / "multi", at).name
            shutil.copytree(checkpoint(out / "multi", at), copy)
            replace_state(copy, {key: value + change.get(key, 0) for key, value in state.items()})
        metrics = lk.run(out, [job(name) for name in variants], "f32")
        return {name: next(e["loss"] for e in metrics[name] if e["step"] == at + 1 and "perplexity" not in e) for name in variants}

    run({"gradient": {}})
    after = read_tensors(checkpoint(out / "gradient", at + 1) / "trainer_state.safetensors")
    # The moments were zero, nothing was clipped: the first moment is a tenth of the gradient.
    gradient = {name.replace("exp_avg.", "param."): value.astype(np.float64) / (1 - TRAIN["betas"][0])
                for name, value in after.items() if name.startswith("exp_avg.")}
    kinds, variants, norms = ("lora_sigma", "lora_A", "lora_B"), {}, {}
    for kind in kinds:
        part = {name: value for name, value in gradient.items() if name.endswith(kind)}
        norms[kind] = math.sqrt(sum(float((value ** 2).sum()) for value in part.values()))
        for sign in (1, -1):
            variants[f"{kind}{sign:+d}".replace("+", "plus").replace("-", "minus")] = {
                name: (sign * change_of_loss / norms[kind] ** 2 * value).astype(np.float32) for name, value in part.items()}
    losses = run(variants)
    return {f"gradient of {kind}: relative error against differences of the loss":
            abs((losses[f"{kind}plus1"] - losses[f"{kind}minus1"]) / (2 * change_of_loss) - 1) for kind in kinds}


def best_rates(lk: Lorikeet, data: Data, arms: tuple[str, ...], rank: int) -> dict:
    """Rates by validation loss after 60 steps of seed 0; an optimum at the edge of the grid widens it."""
    out = lk.work / "tuning"
    shutil.rmtree(out, ignore_errors=True)
    grid = {arm: list(GRID) for arm in arms}
    losses: dict[str, dict[float, float]] = {arm: {} for arm in arms}
    while wanted := [(arm, rate) for arm in arms for rate in grid[arm] if rate not in losses[arm]]:
        named = {(arm, rate): f"{arm}-{rate:g}" for arm, rate in wanted}
        lk.run(out, [train_job(named[arm, rate], arm, rank, 0, rate, data, TUNE_STEPS) for arm, rate in wanted], "bf16")
        scores = lk.score({name: out / name for name in named.values()}, data, "validation")
        for arm, rate in wanted:
            losses[arm][rate] = macro(scores[named[arm, rate]])
        for arm in arms:
            best = LADDER.index(min(losses[arm], key=losses[arm].get))
            grid[arm] = [rate for rate in LADDER[max(best - 1, 0):best + 2]]
    shutil.rmtree(out)
    return {"losses": {arm: {f"{rate:g}": loss for rate, loss in sorted(losses[arm].items())} for arm in arms},
            "rates": {arm: min(losses[arm], key=losses[arm].get) for arm in arms}}


def tune(lk: Lorikeet, data: Data, _: dict) -> dict:
    """The rates that count, at R = 24."""
    found = best_rates(lk, data, TUNED, 24)
    return found | {"rates": found["rates"] | {"L+": found["rates"]["L"]}}


def tune6(lk: Lorikeet, data: Data, _: dict) -> dict:
    """For information: would R = 6 have chosen otherwise?"""
    return best_rates(lk, data, ("L", "M", "M1"), 6)


def train_all(lk: Lorikeet, out: pathlib.Path, jobs: list[dict]) -> dict[str, dict[str, np.ndarray]]:
    """Trains in one pass; keeps the adapters, and the parameters before the scaling vectors were folded in, in WORK/adapters."""
    lk.run(out, jobs, "bf16")
    parameters = {}
    for job in jobs:
        directory = lk.work / "adapters" / job["name"]
        directory.mkdir(parents=True, exist_ok=True)
        state = read_tensors(checkpoint(out / job["name"]) / "trainer_state.safetensors")
        parameters[job["name"]] = {key: value for key, value in state.items() if key.startswith("param.")}
        write_tensors(directory / "parameters.safetensors", parameters[job["name"]])
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(out / job["name"] / file, directory)
    shutil.rmtree(out)
    return parameters


def train(lk: Lorikeet, data: Data, results: dict) -> dict:
    rates = results["tune"]["rates"]
    jobs = [train_job(name_of(arm, rank, seed), arm, rank, seed, rates[arm], data, STEPS) for seed in SEEDS for rank in RANKS for arm in ARMS]
    start = [train_job(f"start-{name_of(arm, rank, seed)}", arm, rank, seed, rates[arm], data, STEPS) | {"train": STILL | {"seed": seed}}
             for seed in SEEDS for rank in RANKS for arm in ("M", "M1")]
    values = train_all(lk, lk.work / "training", jobs + start)
    return {"parameters": {job["name"]: sum(value.size for key, value in values[job["name"]].items() if "freeze" not in job["adapter"] or "lora_sigma" in key)
                           for job in jobs}}


def own_name(arm: str, seed: int) -> str:
    return f"own-{name_of(arm, 6, seed)}"


def own_rates(results: dict) -> dict[str, float]:
    rates = results["tune6"]["rates"]
    return rates | {"L+": rates["L"]}


def own_arms(results: dict) -> list[str]:
    """Those for which R = 6 chooses another rate than R = 24."""
    return [arm for arm, rate in own_rates(results).items() if rate != results["tune"]["rates"][arm]]


def train6(lk: Lorikeet, data: Data, results: dict) -> dict:
    """For information: R = 6 with the rates that R = 6 would have chosen."""
    rates = own_rates(results)
    train_all(lk, lk.work / "training6", [train_job(own_name(arm, seed), arm, 6, seed, rates[arm], data, STEPS) for arm in own_arms(results) for seed in SEEDS])
    return {"rates": rates}


def names(arms=ARMS, seeds=SEEDS) -> list[tuple[str, str, int]]:
    return [(name_of(arm, rank, seed), arm, rank) for seed in seeds for rank in RANKS for arm in arms]


def score(lk: Lorikeet, data: Data, _: dict) -> dict:
    """The 900 test examples; the base as well."""
    adapters: dict[str, pathlib.Path | None] = {name: lk.work / "adapters" / name for name, _, _ in names()}
    return {"test": lk.score(adapters | {"base": None}, data, "test")}


def score6(lk: Lorikeet, data: Data, results: dict) -> dict:
    return {"test": lk.score({own_name(arm, seed): lk.work / "adapters" / own_name(arm, seed) for arm in own_arms(results) for seed in SEEDS}, data, "test")}


def exact(lk: Lorikeet, data: Data, _: dict) -> dict:
    """Answers that are right to the letter: 50 of each task, one seed."""
    return {"exact": lk.score({name: lk.work / "adapters" / name for name, _, _ in names(seeds=SEEDS[:1])}, data, "test50", exact=True)}


# --- Spectrum

def svd(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of B A, without making it."""
    qb, rb = np.linalg.qr(b.astype(np.float64))
    qa, ra = np.linalg.qr(a.astype(np.float64).T)
    u, s, vt = np.linalg.svd(rb @ ra.T)
    return qb @ u, s, vt @ qa.T


def shape_of(s: np.ndarray, rank: int) -> dict[str, float]:
    s = s[s > s[0] * 1e-7]
    p, energy = s / s.sum(), s ** 2 / (s ** 2).sum()
    erank = math.exp(-(p * np.log(p)).sum())
    return {"directions": erank, "effective rank": erank / rank, "top 1": float(energy[0]), "top quarter": float(energy[:math.ceil(rank / 4)].sum()),
            "stable rank": float(1 / energy[0]), "norm": SCALING * math.sqrt((s ** 2).sum())}


def mean_of(shapes: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.fmean(shape[key] for shape in shapes) for key in shapes[0]}


def trained_part(trained: dict[str, np.ndarray], start: dict[str, np.ndarray], module: str) -> tuple[np.ndarray, np.ndarray]:
    """Factors of sum diag(sigma_i) (B_i A_i - B_i0 A_i0): what is left without the untrained residue. Twice the rank."""
    sigma = trained[f"param.{module}.lora_sigma"]
    rank = trained[f"param.{module}.lora_A"].shape[0]
    rows = np.repeat(sigma, rank // sigma.shape[0], axis=0)
    a = np.concatenate([trained[f"param.{module}.lora_A"], start[f"param.{module}.lora_A"]])
    b = np.concatenate([rows * trained[f"param.{module}.lora_B"], -rows * start[f"param.{module}.lora_B"]])
    return a, b.T


def spectra(lk: Lorikeet, data: Data, which: list[tuple[str, str, int]]) -> dict:
    """Means over all matrices; then the loss with the strongest directions of every matrix alone."""
    adapters, cut = lk.work / "adapters", lk.work / f"truncated-{os.getpid()}"
    shapes, left, curves, truncated = {}, {}, {}, {}
    for name, arm, rank in which:
        factors, own_rank = read_adapter(adapters / name), rank + 2 * (arm == "L+")
        parts = {module: svd(a, b) for module, (a, b) in factors.items()}
        shapes[name] = mean_of([shape_of(s, own_rank) for _, s, _ in parts.values()])
        curves[name] = np.mean([s ** 2 / (s ** 2).sum() for _, s, _ in parts.values()], axis=0).tolist()
        if arm in ("M", "M1"):
            trained, start = (read_tensors(adapters / n / "parameters.safetensors") for n in (name, f"start-{name.removeprefix('own-')}"))
            modules = [key[len("param."):-len(".lora_A")] for key in trained if key.endswith(".lora_A")]
            rest = [svd(*trained_part(trained, start, module))[1] for module in modules]
            # Of twice the rank; its R strongest directions are compared, lest the second half counts for flatness.
            left[name] = mean_of([shape_of(s[:rank], rank) for s in rest])
        if arm == "S0":
            continue
        for keep in keeps(rank):
            kept = {module: (np.sqrt(s[:keep, None]) * vt[:keep], u[:, :keep] * np.sqrt(s[:keep])) for module, (u, s, vt) in parts.items()}
            truncated[f"{name}-top{keep}"] = cut / f"{name}-top{keep}"
            write_adapter(cut / f"{name}-top{keep}", adapters / name, kept, SCALING * keep)
    scores = lk.score(truncated, data, "test50")
    shutil.rmtree(cut)
    return {"shapes": shapes, "without residue": left, "energies": curves, "truncated": {name: macro(value) for name, value in scores.items()}}


def spectrum(lk: Lorikeet, data: Data, _: dict) -> dict:
    return spectra(lk, data, names())


def spectrum6(lk: Lorikeet, data: Data, results: dict) -> dict:
    return spectra(lk, data, [(own_name(arm, seed), arm, 6) for arm in own_arms(results) for seed in SEEDS])


def keeps(at) -> list[int]:
    return [math.ceil((6 if at == OWN else at) / part) for part in (1, 2, 4, 8)]


# --- Report

def gain_of(losses: list[float], others: list[float]) -> dict:
    """How much lower the first losses are, paired by seed."""
    gains = [theirs - ours for ours, theirs in zip(losses, others, strict=True)]
    mean, deviation, wins = statistics.fmean(gains), statistics.stdev(gains), sum(gain > 0 for gain in gains)
    relative = mean / statistics.fmean(others)
    return {"mean": mean, "sd": deviation, "relative": relative, "wins": wins,
            "clear": wins == len(SEEDS) and relative >= 0.02 and mean > 2 * deviation}


OWN = "6, own rates"  # beside the two R of the protocol


class Findings:
    """All figures of a finished run, and the verdicts by the rules that were fixed beforehand."""

    def __init__(self, results: dict) -> None:
        self.results = results
        self.exact = results["exact"]["exact"]
        self.test = results["score"]["test"] | results["score6"]["test"]
        self.shapes, self.left, self.energies, self.truncated = (results["spectrum"][key] | results["spectrum6"][key]
                                                                 for key in ("shapes", "without residue", "energies", "truncated"))

    def names(self, arm: str, at) -> list[str]:
        own = [own_name(arm, seed) for seed in SEEDS]
        return own if at == OWN and own[0] in self.test else [name_of(arm, 6 if at == OWN else at, seed) for seed in SEEDS]

    def losses(self, arm: str, at) -> list[float]:
        return [macro(self.test[name]) for name in self.names(arm, at)]

    def shape(self, arm: str, at, key: str) -> list[float]:
        return [self.shapes[name][key] for name in self.names(arm, at)]

    def rest(self, arm: str, at, key: str) -> list[float]:
        return [self.left[name][key] for name in self.names(arm, at)]

    def cut(self, arm: str, at, keep: int) -> list[float]:
        return [self.truncated[f"{name}-top{keep}"] for name in self.names(arm, at)]

    def cost_of_cut(self, arm: str, at, keep: int) -> list[float]:
        return [cut - whole for cut, whole in zip(self.cut(arm, at, keep), self.cut(arm, at, keeps(at)[0]), strict=True)]

    def gain(self, arm: str, other: str, at) -> dict:
        return gain_of(self.losses(arm, at), self.losses(other, at))

    def verdicts(self) -> list[list[str]]:
        """Of the two R of the protocol; the same rules with R = 6 at its own rates stand beside them."""
        rows, places = [], (*RANKS, OWN)
        for at in places:
            better, parallel = self.gain("M", "L", at), self.gain("M", "M1", at)
            confirmed = better["clear"] and self.gain("M", "L+", at)["clear"]
            higher = lambda ours, theirs: all(m > l for m, l in zip(ours, theirs, strict=True))  # noqa: E731
            flat = self.shape("L", at, "effective rank")
            whole, trained = higher(self.shape("M", at, "effective rank"), flat), higher(self.rest("M", at, "effective rank"), flat)
            used = higher(self.cost_of_cut("M", at, keeps(at)[2]), self.cost_of_cut("L", at, keeps(at)[2]))
            spectrum_ = "confirmed" if trained and used else "flatter but idle" if whole else "not flatter"
            said = lambda gain, clear: "confirmed" if clear else "no gain" if gain["mean"] <= 0 else "not decided"  # noqa: E731
            yes = lambda value: "yes" if value else "no"  # noqa: E731
            rows.append([str(at), said(better, confirmed), said(parallel, parallel["clear"]), spectrum_, yes(whole), yes(trained), yes(used)])
        return rows


def spread(values: list[float], digits: int = 3) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def report(results: dict) -> None:
    f = Findings(results)
    counts, fixed, own = results["train"]["parameters"], results["tune"]["rates"], own_rates(results)
    every = [(at, arm) for at in (*RANKS, OWN) for arm in ARMS if at != OWN or arm != "S0"]
    rank_of = lambda at: 6 if at == OWN else at  # noqa: E731
    table(["identity", "difference"], [[key, f"{value:.2g}"] for key, value in results["identities"].items() if key != "cpu_seconds"])
    print("Rates: validation loss after 60 steps\n")
    tuned = [(24, results["tune"]["losses"]), (6, results["tune6"]["losses"])]
    rates = sorted({rate for _, arms in tuned for losses in arms.values() for rate in losses}, key=float)
    table(["R", "arm", *rates], [[str(rank), arm] + [f"{losses[rate]:.3f}" if rate in losses else "" for rate in rates]
                                 for rank, arms in tuned for arm, losses in arms.items()])
    print(f"Loss per answer token on the test examples (base: {macro(f.test['base']):.3f})\n")
    rows = []
    for at, arm in every:
        names_ = f.names(arm, at)
        exact_ = f"{100 * macro(f.exact[names_[0]], 'exact'):.0f}" if names_[0] in f.exact else ""
        rows.append([str(at), arm, f"{counts[name_of(arm, rank_of(at), 1)]:,}", f"{(own if at == OWN else fixed)[arm]:g}", spread(f.losses(arm, at), 4), exact_] +
                    [f"{statistics.median(f.test[name][task]['loss'] for name in names_):.3f}" for task in TASKS])
    table(["R", "arm", "parameters", "rate", "loss", "exact %", *TASKS], rows)
    print("Paired gains\n")
    pairs = (("M", "L"), ("M", "L+"), ("M", "M1"), ("M1", "L"), ("L+", "L"))
    table(["R", "arms", "mean gain", "of the loss", "SD", "seeds won", "clear"],
          [[str(at), f"{arm} over {other}", f"{g['mean']:+.4f}", f"{100 * g['relative']:+.1f} %", f"{g['sd']:.4f}", f"{g['wins']}/3", "yes" if g["clear"] else "no"]
           for at in (*RANKS, OWN) for arm, other in pairs for g in [f.gain(arm, other, at)]])
    print("Spectrum, means of all matrices\n")
    keys, rows = ("effective rank", "top 1", "top quarter", "stable rank", "norm"), []
    for at, arm in every:
        rows.append([str(at), arm] + [spread(f.shape(arm, at, key), 2) for key in keys])
        if arm in ("M", "M1"):
            rows.append([str(at), f"{arm}, trained part"] + [spread(f.rest(arm, at, key), 2) for key in keys])
    table(["R", "arm", "effective rank / R", "energy of the first", "of the first quarter", "stable rank", "norm"], rows)
    print("Loss added when the strongest k directions of every matrix are kept (50 examples of each task)\n")
    table(["R", "arm", "whole", "R/2", "R/4", "R/8"],
          [[str(at), arm, spread(f.cut(arm, at, keeps(at)[0]))] + [spread(f.cost_of_cut(arm, at, keep)) for keep in keeps(at)[1:]]
           for at, arm in every if arm != "S0"])
    print("Verdicts\n")
    table(["R", "better than LoRA", "because of the parallel modules", "more democratic", "flatter", "flatter without the residue", "R/4 costs more"], f.verdicts())
    print("CPU seconds:", ", ".join(f"{stage} {result['cpu_seconds']:.0f}" for stage, result in results.items()),
          "together", round(sum(result["cpu_seconds"] for result in results.values())))


# --- Plot

COLORS = {"L": "#0072B2", "L+": "#56B4E9", "M": "#D55E00", "M1": "#E69F00", "S0": "#999999"}  # Okabe and Ito's


def plot(results: dict, path: pathlib.Path) -> None:
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("plot needs matplotlib: pip install matplotlib")
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
                         "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6",
                         "legend.frameon": False, "savefig.bbox": "tight", "svg.hashsalt": "lorikeet", "svg.fonttype": "none"})
    f, marks = Findings(results), {"L": "o", "L+": "s", "M": "D", "M1": "^", "S0": "v"}
    places, shown = (24, 6, OWN), [arm for arm in ARMS if arm != "S0"]
    figure, axes = plt.subplots(3, 3, figsize=(11, 8.6), constrained_layout=True)
    for row, at in enumerate(places):
        loss, energy, cut = axes[row]
        for seed in range(len(SEEDS)):
            loss.plot(range(len(shown)), [f.losses(arm, at)[seed] for arm in shown], color="#cccccc", linewidth=0.8, zorder=0)
        for place, arm in enumerate(shown):
            values = f.losses(arm, at)
            loss.plot([place] * len(values), values, marks[arm], color=COLORS[arm], alpha=0.75)
            loss.plot([place - 0.25, place + 0.25], [statistics.median(values)] * 2, color=COLORS[arm], linewidth=2)
        loss.set_xticks(range(len(shown)), shown)
        loss.set_xlim(-0.5, len(shown) - 0.5)
        loss.set_ylim(0.115, 0.175)
        loss.set_title(f"R = {at}: loss per answer token")
        for arm in ARMS if at != OWN else shown:
            energies = np.mean([f.energies[name] for name in f.names(arm, at)], axis=0)
            energy.plot(range(1, len(energies) + 1), energies, marks[arm] + "-", color=COLORS[arm], label=arm, markersize=4, linewidth=1.4)
        energy.set_yscale("log")
        energy.set_title("energy of the change, by singular direction")
        for arm in shown:
            costs = [f.cost_of_cut(arm, at, keep) for keep in keeps(at)]
            middle = [statistics.median(cost) for cost in costs]
            bars = [[m - min(c) for m, c in zip(middle, costs, strict=True)], [max(c) - m for m, c in zip(middle, costs, strict=True)]]
            cut.errorbar(range(4), middle, bars, fmt=marks[arm] + "-", color=COLORS[arm], capsize=3, markersize=4, linewidth=1.4)
        cut.set_xticks(range(4), [str(keep) for keep in keeps(at)])
        cut.set_title("loss added by keeping k directions")
    axes[0][1].legend(ncol=3, fontsize=8)
    for axis, label in zip(axes[-1], ("arm (three seeds, grey: the same seed)", "direction", "k"), strict=True):
        axis.set_xlabel(label)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)
    if path.suffix == ".svg":  # a hundredth of a point is enough
        path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text()))


STAGES = {"identities": identities, "tune": tune, "tune6": tune6, "train": train, "train6": train6, "score": score,
          "score6": score6, "exact": exact, "spectrum": spectrum, "spectrum6": spectrum6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"{', '.join(STAGES)}; report, plot")
    parser.add_argument("--lorikeet", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "examples/demo/model")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/multilora")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument("--figure", type=pathlib.Path, default=ROOT / "docs/results/figures/multilora.svg", help="of `plot`")
    args = parser.parse_args()
    args.work = args.work.resolve()
    data = Data(args.work)
    results = {}
    for stage, run in STAGES.items():
        path = args.work / f"{stage}.json"
        if not path.exists() and (not args.stages or stage in args.stages):
            lk, begin = Lorikeet(args), time.monotonic()
            result = run(lk, data, results)
            result["cpu_seconds"] = round(lk.cpu_seconds, 1)
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{stage}: {lk.cpu_seconds:.0f} CPU-s, {time.monotonic() - begin:.0f} s", flush=True)
        if path.exists():
            results[stage] = json.loads(path.read_text())
    if "report" in args.stages or not args.stages:
        report(results)
    if "plot" in args.stages:
        plot(results, args.figure)


if __name__ == "__main__":
    main()
