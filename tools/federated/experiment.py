#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Federated LoRA on the demo's base: does LoRA's gap to full fine-tuning grow with heterogeneity, does SLoRA close it at equal
rounds and bytes, and how do the other rules stand beside it? Writes WORK/results.json, prints the tables and the verdicts.

    python3 tools/federated/experiment.py --lorikeet build/cpu-release/bin/lorikeet --work build/federated [--small] [--plot FILE.svg]

Nothing beyond Python is needed (matplotlib for --plot). Every run is a `lorikeet federate simulate` of its own directory: what is
finished is not run again, what was interrupted goes on. --small is a smoke test: few clients, rounds and steps, no verdict.

Fixed beforehand: K = 12 clients from four tasks of 800 training examples each, Dirichlet over tasks with alpha 0.1 or infinite, 4
sampled a round, 10 rounds of 6 steps of 16 examples, weights by examples, AdamW anew in each round. Rates are chosen on a
validation draw; the held-out examples of examples/demo/tasks are only for the tables.

Arms: fedit (fedavg), slora (density of equal bytes), slora1 (1 %), full (all values of the same matrices), ffa, rolora, flex, flora,
fedex; central: one client with everything and as many examples; restart: fedit without the rounds that SLoRA's first stage takes,
which is what a random start in their stead would give.
"""
from __future__ import annotations

import argparse
import json
import math
import pathlib
import random
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))
import tasks  # noqa: E402

TASKS = ("dates", "json", "sql", "tag")
MODEL = ROOT / "examples" / "demo" / "model"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GRID = {"slora": ("stage1_lr", (1e-3, 3e-3, 1e-2)), "full": ("stage1_lr", (1e-4, 3e-4, 1e-3)), "ffa": ("lr", (3e-3, 6e-3))}
LORA_RATE = 3e-3
RIVALS = ("ffa", "rolora", "flex", "flora", "fedex")


class Size:
    def __init__(self, small: bool):
        self.clients, self.per_round, self.rounds, self.stage1 = (4, 2, 2, 1) if small else (12, 4, 10, 3)
        self.steps, self.batch, self.pool, self.held = (1, 4, 40, 4) if small else (6, 16, 800, 50)
        self.tune_rounds = 1 if small else 3
        self.seeds = (1,) if small else (1, 2)


def write_records(path: pathlib.Path, examples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for example in examples:
        messages = [{"role": "user", "content": example.user}, {"role": "assistant", "content": example.answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    path.write_text("\n".join(lines) + "\n")


class Experiment:
    def __init__(self, lorikeet: str, work: pathlib.Path, size: Size, threads: int):
        self.lorikeet, self.work, self.size, self.threads = lorikeet, work, size, threads
        for number, task in enumerate(TASKS):
            rng = random.Random(9000 + number)
            for name, examples in ((task, [tasks.draw(task, rng) for _ in range(size.pool)]),
                                   (f"valid-{task}", [tasks.draw(task, rng) for _ in range(size.held)]),
                                   (f"held-{task}", tasks.test_set(task)[:size.held])):
                if not (work / "data" / f"{name}.jsonl").exists():
                    write_records(work / "data" / f"{name}.jsonl", examples)
        central = work / "data" / "all" / "everything.jsonl"
        if not central.exists():
            central.parent.mkdir(parents=True, exist_ok=True)
            central.write_text("".join((work / "data" / f"{task}.jsonl").read_text() for task in TASKS))

    def clients(self, alpha: float, seed: int) -> str:
        out = self.work / "clients" / f"alpha{alpha}-s{seed}"
        if not out.exists():
            files = [str(self.work / "data" / f"{task}.jsonl") for task in TASKS]
            subprocess.run([self.lorikeet, "federate", "split", *files, "--clients", str(self.size.clients), "--alpha", str(alpha),
                            "--min-examples", str(2 * self.size.batch if self.size.clients > 4 else 1), "--seed", str(seed),
                            "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
        return str(out / "*.jsonl")

    def run(self, name: str, data: str, seed: int, rule: dict, *, lr: float = LORA_RATE, rounds: int = 0, held: str = "held",
            per_round: int = 0, steps: int = 0) -> list[dict]:
        """The rounds of a run, from its metrics."""
        rounds = rounds or self.size.rounds
        config = {"base": str(MODEL), "dtype": "f32", "block_tokens": 2048, "threads": self.threads, "rounds": rounds, "seed": seed,
                  "adapter": {"rank": 8, "alpha": 16, "target_modules": TARGETS},
                  "clients": {"data": data, "per_round": per_round or self.size.per_round},
                  "train": {"steps": steps or self.size.steps, "batch_samples": self.size.batch, "lr": lr, "schedule": "cosine",
                            "min_ratio": 0.02, "betas": [0.9, 0.98], "clip": 1},
                  "rule": rule, "eval": {"path": [str(self.work / "data" / f"{held}-{task}.jsonl") for task in TASKS]}}
        path = self.work / "runs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        out = self.work / "runs" / name
        metrics = out / "metrics.jsonl"
        done = metrics.exists() and len(metrics.read_text().splitlines()) == rounds + 1
        if not done:
            print(f"  {name}", file=sys.stderr, flush=True)
            subprocess.run([self.lorikeet, "federate", "simulate", str(path), "--out", str(out)], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    def rule_of(self, arm: str, rates: dict[str, float], rounds: int = 0) -> tuple[dict, float]:
        stage1 = self.size.stage1
        if arm in ("slora", "slora1"):
            rule = {"name": "slora", "stage1_rounds": stage1, "stage1_lr": rates.get("slora", LORA_RATE)}
            return (rule | {"density": 0.01} if arm == "slora1" else rule), LORA_RATE
        if arm == "full":
            # All values in all rounds; what they are in the end is published as ranks of the adapter.
            return {"name": "slora", "stage1_rounds": rounds or self.size.rounds, "density": 1, "keep_sparse": True,
                    "stage1_lr": rates.get("full", 3e-4)}, LORA_RATE
        if arm == "ffa":
            return {"name": "ffa"}, rates.get("ffa", LORA_RATE)
        return {"name": {"fedit": "fedavg"}.get(arm, arm)}, LORA_RATE

    def tune(self) -> tuple[dict[str, float], dict]:
        rates, seen = {}, {}
        for arm, (key, grid) in GRID.items():
            seen[arm] = {}
            for rate in grid:
                rounds = self.size.tune_rounds
                rule, lr = self.rule_of(arm, {arm: rate}, rounds)
                if arm == "slora":  # the first stage alone
                    rule["stage1_rounds"], rule["keep_sparse"] = rounds, True
                lines = self.run(f"tune-{arm}-{rate:g}", self.clients(0.1, 1), 1, rule, lr=lr, rounds=rounds, held="valid")
                loss = lines[-1]["eval_loss"]
                seen[arm][f"{rate:g}"] = loss
            finite = {rate: loss for rate, loss in seen[arm].items() if loss is not None and math.isfinite(loss)}
            rates[arm] = float(min(finite, key=finite.get))
        return rates, seen

    def all_runs(self) -> dict:
        rates, tuned = self.tune()
        results = {"rates": rates, "tuning": tuned, "runs": {}}
        todo = []
        for seed in self.size.seeds:
            todo += [(0.1, seed, arm) for arm in ("fedit", "slora", "full", "restart", *RIVALS)]
        first = self.size.seeds[0]
        todo += [(0.1, first, "slora1"), (0.1, first, "central")]
        todo += [(math.inf, first, arm) for arm in ("fedit", "slora", "full")]
        for alpha, seed, arm in todo:
            data, extra = self.clients(alpha, seed), {}
            rule, lr = self.rule_of("fedit" if arm in ("restart", "central") else arm, rates)
            if arm == "restart":
                extra = {"rounds": self.size.rounds - self.size.stage1}
            if arm == "central":
                data = str(self.work / "data" / "all" / "*.jsonl")
                extra = {"rounds": 1, "per_round": 1, "steps": self.size.rounds * self.size.steps * self.size.per_round}
            name = f"{arm}-alpha{alpha}-s{seed}"
            results["runs"][name] = {"arm": arm, "alpha": str(alpha), "seed": seed,
                                     "rounds": self.run(name, data, seed, rule, lr=lr, **extra)}
        return results


# --- What came out

def last(results: dict, arm: str, alpha: float, seed: int) -> dict:
    return results["runs"][f"{arm}-alpha{alpha}-s{seed}"]["rounds"][-1]


def loss_of(results: dict, arm: str, alpha: float, seed: int) -> float:
    """Mean over the tasks, so that the longest answers do not decide."""
    files = last(results, arm, alpha, seed)["eval"]
    return sum(file["loss"] for file in files.values()) / len(files)


def report(results: dict, size: Size) -> None:
    print("rates chosen on the validation draw:", json.dumps(results["rates"]), "of", json.dumps(results["tuning"]))
    print("\n| alpha | seed | arm | NLL, mean of tasks | worst task | next tokens right % | aggregation error | MB up a client and round |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for run in results["runs"].values():
        lines = run["rounds"]
        files = lines[-1]["eval"]
        worst = max(files, key=lambda f: files[f]["loss"])
        error = max((line.get("aggregation_error", 0) for line in lines[1:]), default=0)
        up = sum(line["upload_bytes"] / len(line["clients"]) for line in lines[1:]) / max(len(lines) - 1, 1) / 1e6
        mean = sum(f["loss"] for f in files.values()) / len(files)
        right = 100 * sum(f["accuracy"] for f in files.values()) / len(files)
        print(f"| {run['alpha']} | {run['seed']} | {run['arm']} | {mean:.4f} | {files[worst]['loss']:.4f} ({worst.removeprefix('held-')}) | "
              f"{right:.1f} | {error:.3f} | {up:.3f} |")
    for name, run in results["runs"].items():
        for line in run["rounds"]:
            if "handover_dropped" in line:
                print(f"{name}: hand-over after round {line['round']} dropped {100 * line['handover_dropped']:.1f} % of the energy")
    if len(size.seeds) < 2:
        return
    first = size.seeds[0]
    gap = {seed: loss_of(results, "fedit", 0.1, seed) - loss_of(results, "full", 0.1, seed) for seed in size.seeds}
    alike = loss_of(results, "fedit", math.inf, first) - loss_of(results, "full", math.inf, first)
    grows = all(gap[s] - alike > 0 and gap[s] - alike >= 0.1 * loss_of(results, "fedit", 0.1, s) for s in size.seeds)
    print(f"\n(1) gap of fedit to full: alpha 0.1 {', '.join(f'{gap[s]:.4f}' for s in size.seeds)}; infinite {alike:.4f}: "
          f"{'confirmed' if grows else 'not confirmed'} that it grows with heterogeneity")
    if not all(g > 0 for g in gap.values()):
        print("(2) there is no gap to close")
        return
    closed = {s: (loss_of(results, "fedit", 0.1, s) - loss_of(results, "slora", 0.1, s)) / gap[s] for s in size.seeds}
    better = all(loss_of(results, "slora", 0.1, s) < loss_of(results, "restart", 0.1, s) for s in size.seeds)
    verdict = "confirmed" if min(closed.values()) >= 0.5 and better else "refuted" if max(closed.values()) < 0.1 else "not decided"
    print(f"(2) SLoRA closes {', '.join(f'{100 * c:.0f} %' for c in closed.values())} of it at equal rounds and bytes, "
          f"{'better' if better else 'not better'} than the restart: {verdict}")
    for seed in size.seeds:
        target = loss_of(results, "fedit", 0.1, seed)
        reached = {}
        for arm in ("fedit", "slora", "full"):
            lines = results["runs"][f"{arm}-alpha0.1-s{seed}"]["rounds"]
            means = {line["round"]: sum(f["loss"] for f in line["eval"].values()) / len(line["eval"]) for line in lines}
            reached[arm] = next((r for r, loss in sorted(means.items()) if loss <= target), None)
        print(f"(3) seed {seed}: rounds to fedit's last NLL: {reached}")


def plot(results: dict, path: str) -> None:
    import matplotlib
    matplotlib.use("svg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, run in results["runs"].items():
        if run["alpha"] != "0.1" or run["seed"] != 1 or run["arm"] in ("central", "restart"):
            continue
        points = [(line["round"], sum(f["loss"] for f in line["eval"].values()) / len(line["eval"])) for line in run["rounds"]]
        axes.plot(*zip(*points), label=run["arm"], linewidth=1.5)
    axes.set_xlabel("round"), axes.set_ylabel("NLL of the global model, mean of tasks"), axes.set_yscale("log"), axes.legend(ncol=2)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default="build/cpu-release/bin/lorikeet")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/federated"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a smoke test of the script")
    parser.add_argument("--plot", help="SVG file for the loss curves")
    args = parser.parse_args()
    size = Size(args.small)
    work = (args.work / "small" if args.small else args.work).resolve()
    results = Experiment(args.lorikeet, work, size, args.threads).all_runs()
    (work / "results.json").write_text(json.dumps(results, indent=1))
    report(results, size)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
