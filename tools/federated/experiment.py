#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Federated LoRA on the demo's base: does LoRA's gap to full fine-tuning grow with heterogeneity, does SLoRA close it at equal
rounds and bytes, and how do the other rules stand beside it? Writes WORK/results.json, prints the tables and the verdicts.

    python3 tools/federated/experiment.py --lorikeet build/cpu-release/bin/lorikeet --work build/federated [--small] [--plot FILE.svg]

Nothing beyond Python is needed (matplotlib for --plot). Every run is a `lorikeet federate simulate` of its own directory: what is
finished is not run again, what was interrupted goes on. --report prints of what there is and runs nothing. --small is a smoke test:
few clients, rounds and steps, no verdict.

Fixed beforehand: K = 12 clients from four tasks of 800 training examples each, Dirichlet over tasks with alpha 0.1 or infinite, 4
sampled a round, 10 rounds of 6 steps of 16 examples, weights by examples, AdamW anew in each round. Rates are chosen on a
validation draw in 3 rounds, a best one at the grid's edge widens the grid; the rate of LoRA is 3e-3 as in the demo, and where the
draw prefers another, the arm fedit* has that one. The held-out examples of examples/demo/tasks are only for the tables.

Arms: fedit (fedavg), slora (density of equal bytes), slora1 (1 %), full (all values of the same matrices), ffa, rolora, flex, flora,
fedex; central: one client with everything and as many examples; restart: SLoRA whose first stage moves nothing, so that the second,
with the same clients and schedule, begins at random: is it the start, or beginning anew?

Own task: the global model's NLL on the tasks of a client by its share of them, mean and worst of the clients. Time: of a client's
bytes over 1 Mb/s both ways and of its share of the CPU time that the simulation took, evaluation included.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools" / "train_demo"))
import tasks  # noqa: E402

TASKS = ("dates", "json", "sql", "tag")
MODEL = ROOT / "examples" / "demo" / "model"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GRID = {"slora": (1e-3, 3e-3, 1e-2), "full": (1e-4, 3e-4, 1e-3), "ffa": (3e-3, 6e-3), "fedit": (1e-3, 3e-3, 1e-2)}
WIDENED = 2  # times at most, by a factor of 3
LORA_RATE = 3e-3
STILL = 1e-300  # a rate that is zero in f32
BITS_PER_SECOND = 1e6
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
        self.rates: dict[str, float] = {}
        self.tuned: dict[str, dict[str, float]] = {}
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
            before = os.times()
            try:
                subprocess.run([self.lorikeet, "federate", "simulate", str(path), "--out", str(out)], check=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            finally:  # of all attempts, as they come
                after = os.times()
                with (self.work / "runs" / f"{name}.cpu").open("a") as cpu:
                    cpu.write(f"{after.children_user + after.children_system - before.children_user - before.children_system:.2f}\n")
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    def cpu_seconds(self, name: str) -> float:
        return sum(float(line) for line in (self.work / "runs" / f"{name}.cpu").read_text().split())

    def exact_match(self, name: str) -> dict[str, float]:
        """Share of held-out answers that the published adapter gives to the letter, by task."""
        path = self.work / "runs" / f"{name}.exact.json"
        if not path.exists():
            requests, answers = self.work / "requests.jsonl", self.work / "runs" / f"{name}.answers.jsonl"
            lines = []
            for task in TASKS:
                held = (ROOT / "examples" / "demo" / "tasks" / f"{task}.jsonl").read_text().splitlines()[:self.size.held]
                lines += [json.dumps(json.loads(line) | {"adapter": "global"}) for line in held]
            requests.write_text("\n".join(lines) + "\n")
            subprocess.run([self.lorikeet, "generate", str(MODEL), "--dtype", "f32", "--threads", str(self.threads), "--lora-modules",
                            f"global={self.work / 'runs' / name / 'latest'}", "--input", str(requests), "--output", str(answers)],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            right = {task: [] for task in TASKS}
            for line in map(json.loads, answers.read_text().splitlines()):
                right[line["id"].split("-")[0]].append(line["match"])
            path.write_text(json.dumps({task: sum(each) / len(each) for task, each in right.items()}))
        return json.loads(path.read_text())

    def shares(self, data: str) -> list[list[float]]:
        """Of each client's records, the share of each task."""
        pools = [set((self.work / "data" / f"{task}.jsonl").read_text().splitlines()) for task in TASKS]
        found = []
        for path in sorted(pathlib.Path(data).parent.glob("*.jsonl")):
            lines = path.read_text().splitlines()
            found.append([sum(line in pool for line in lines) / len(lines) for pool in pools])
        return found

    def rule_of(self, arm: str, rates: dict[str, float], rounds: int = 0) -> tuple[dict, float]:
        stage1 = self.size.stage1
        if arm in ("slora", "slora1", "restart"):
            rate = STILL if arm == "restart" else rates.get("slora", LORA_RATE)
            rule = {"name": "slora", "stage1_rounds": stage1, "stage1_lr": rate}
            return (rule | {"density": 0.01} if arm == "slora1" else rule), LORA_RATE
        if arm == "full":
            # All values in all rounds; what they are in the end is published as ranks of the adapter.
            return {"name": "slora", "stage1_rounds": rounds or self.size.rounds, "density": 1, "keep_sparse": True,
                    "stage1_lr": rates.get("full", 3e-4)}, LORA_RATE
        if arm == "ffa":
            return {"name": "ffa"}, rates.get("ffa", LORA_RATE)
        if arm in ("fedit", "fedit*", "central"):
            return {"name": "fedavg"}, rates["fedit"] if arm == "fedit*" else LORA_RATE
        return {"name": arm}, LORA_RATE

    def tune(self, arm: str) -> None:
        """Chooses an arm's rate, once."""
        if arm in self.rates or arm not in GRID:
            return
        rounds, grid = self.size.tune_rounds, GRID[arm]

        def loss_at(rate: float) -> float:
            rule, lr = self.rule_of("fedit*" if arm == "fedit" else arm, {arm: rate}, rounds)
            if arm == "slora":  # the first stage alone
                rule |= {"stage1_rounds": rounds, "keep_sparse": True}
            lines = self.run(f"tune-{arm}-{rate:g}", self.clients(0.1, 1), 1, rule, lr=lr, rounds=rounds, held="valid")
            loss = mean_loss(lines[-1])
            return loss if math.isfinite(loss) else math.inf

        losses = {rate: loss_at(rate) for rate in grid}
        for _ in range(WIDENED if len(grid) > 2 else 0):
            best = min(losses, key=losses.get)
            if min(losses) < best < max(losses):
                break
            rate = float(f"{best * 3 if best == max(losses) else best / 3:.1g}")
            losses[rate] = loss_at(rate)
        self.rates[arm], self.tuned[arm] = min(losses, key=losses.get), {f"{rate:g}": losses[rate] for rate in sorted(losses)}

    def all_runs(self) -> None:
        runs: dict[str, dict] = {}

        def do(alpha: float, seed: int, arm: str) -> None:
            self.tune({"slora1": "slora", "fedit": "", "fedit*": "fedit"}.get(arm, arm))
            data, extra = self.clients(alpha, seed), {}
            rule, lr = self.rule_of(arm, self.rates)
            if arm == "central":
                data = str(self.work / "data" / "all" / "*.jsonl")
                extra = {"rounds": 1, "per_round": 1, "steps": self.size.rounds * self.size.steps * self.size.per_round}
            name = f"{arm.replace('*', '-tuned')}-alpha{alpha}-s{seed}"
            runs[f"{arm}-alpha{alpha}-s{seed}"] = {
                "arm": arm, "alpha": str(alpha), "seed": seed, "rounds": self.run(name, data, seed, rule, lr=lr, **extra),
                "exact": self.exact_match(name), "shares": self.shares(data), "cpu_seconds": self.cpu_seconds(name)}
            results = {"rates": self.rates, "tuning": self.tuned, "runs": runs}
            (self.work / "results.json").write_text(json.dumps(results, indent=1))

        first, others = self.size.seeds[0], self.size.seeds[1:]
        # What the verdicts need comes first.
        for seed in self.size.seeds:
            for arm in ("fedit", "full", "slora", "restart"):
                do(0.1, seed, arm)
        for arm in ("fedit", "full", "slora"):
            do(math.inf, first, arm)
        for arm in ("slora1", "central", *RIVALS):
            do(0.1, first, arm)
        self.tune("fedit")
        if self.rates["fedit"] != LORA_RATE:
            for alpha, seed in ((0.1, first), (math.inf, first), *((0.1, seed) for seed in others)):
                do(alpha, seed, "fedit*")
        for seed in others:
            for arm in RIVALS:
                do(0.1, seed, arm)


# --- What came out

def losses_by_task(line: dict) -> list[float]:
    files = line["eval"]
    return [next(files[name]["loss"] for name in files if name.endswith(f"-{task}")) for task in TASKS]


def mean_loss(line: dict) -> float:
    """Over the tasks, so that the longest answers do not decide."""
    return sum(losses_by_task(line)) / len(TASKS)


class Run:
    def __init__(self, run: dict):
        self.arm, self.alpha, self.seed, self.lines = run["arm"], run["alpha"], run["seed"], run["rounds"]
        self.exact, self.cpu_seconds = run["exact"], run["cpu_seconds"]
        losses = losses_by_task(self.lines[-1])
        self.loss, self.worst = mean_loss(self.lines[-1]), max(losses)
        self.worst_task = TASKS[losses.index(self.worst)]
        own = [sum(share * loss for share, loss in zip(shares, losses, strict=True)) for shares in run["shares"]]
        self.own, self.own_worst = sum(own) / len(own), max(own)
        self.error = max((line.get("aggregation_error", 0) for line in self.lines[1:]), default=0)

    def client_bytes(self, line: dict, key: str) -> float:
        return line[key] / len(line["clients"])

    def megabytes(self, key: str) -> float:
        return sum(self.client_bytes(line, key) for line in self.lines[1:]) / 1e6

    def seconds(self, rounds: int) -> float:
        """Of the first rounds: what a client sends and receives at 1 Mb/s, and its share of the computation."""
        wire = sum(8 * (self.client_bytes(line, "upload_bytes") + self.client_bytes(line, "download_bytes")) / BITS_PER_SECOND
                   for line in self.lines[1:rounds + 1])
        return wire + self.cpu_seconds / len(self.lines[1:]) / len(self.lines[1]["clients"]) * rounds

    def rounds_to(self, loss: float) -> int | None:
        return next((line["round"] for line in self.lines if mean_loss(line) <= loss), None)


class Findings:
    def __init__(self, results: dict, size: Size):
        self.results, self.size = results, size
        self.runs = {name: Run(run) for name, run in results["runs"].items()}

    def of(self, arm: str, alpha: float, seed: int) -> Run | None:
        return self.runs.get(f"{arm}-alpha{alpha}-s{seed}")

    def loss(self, arm: str, alpha: float, seed: int) -> float:
        return self.of(arm, alpha, seed).loss

    def table(self) -> None:
        print("| alpha | seed | arm | NLL | exact % | worst task | own tasks: mean, worst client | error | MB up + down | rounds, s to fedit's NLL | CPU s |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for run in self.runs.values():
            fedit, reached = self.of("fedit", float(run.alpha), run.seed), ""
            if fedit and run.arm != "central":
                rounds = run.rounds_to(fedit.loss)
                reached = "not" if rounds is None else f"{rounds}, {run.seconds(rounds):.0f}"
            exact = 100 * sum(run.exact.values()) / len(run.exact)
            print(f"| {run.alpha} | {run.seed} | {run.arm} | {run.loss:.4f} | {exact:.1f} | {run.worst:.4f} {run.worst_task} | "
                  f"{run.own:.4f}, {run.own_worst:.4f} | {run.error:.3f} | {run.megabytes('upload_bytes'):.2f} + "
                  f"{run.megabytes('download_bytes'):.2f} | {reached} | {run.cpu_seconds:.0f} |")

    def verdicts(self) -> None:
        first, seeds = self.size.seeds[0], self.size.seeds
        needed = [(arm, 0.1, seed) for seed in seeds for arm in ("fedit", "full", "slora", "restart")]
        needed += [(arm, math.inf, first) for arm in ("fedit", "full")]
        missing = [f"{arm} at {alpha}, seed {seed}" for arm, alpha, seed in needed if not self.of(arm, alpha, seed)]
        if len(seeds) < 2 or missing:
            print("no verdict;", "missing: " + ", ".join(missing) if missing else "one seed")
            return
        for fedit in dict.fromkeys(run.arm for run in self.runs.values() if run.arm.startswith("fedit")):
            if any(not self.of(fedit, 0.1, seed) for seed in seeds) or not self.of(fedit, math.inf, first):
                continue
            gap = {seed: self.loss(fedit, 0.1, seed) - self.loss("full", 0.1, seed) for seed in seeds}
            alike = self.loss(fedit, math.inf, first) - self.loss("full", math.inf, first)
            grows = all(gap[s] - alike > 0 and gap[s] - alike >= 0.1 * self.loss(fedit, 0.1, s) for s in seeds)
            print(f"(1) gap of {fedit} to full: alpha 0.1 {', '.join(f'{gap[s]:.4f}' for s in seeds)}; infinite {alike:.4f}: "
                  f"{'confirmed' if grows else 'refuted'} that it grows with heterogeneity")
            if not all(g > 0 for g in gap.values()):
                print(f"(2) beside {fedit} there is no gap to close in every seed")
                continue
            closed = {s: (self.loss(fedit, 0.1, s) - self.loss("slora", 0.1, s)) / gap[s] for s in seeds}
            better = all(self.loss("slora", 0.1, s) < self.loss("restart", 0.1, s) for s in seeds)
            worse = all(c < 0.1 for c in closed.values())
            verdict = "confirmed" if min(closed.values()) >= 0.5 and better else "refuted" if worse else "not decided"
            print(f"(2) SLoRA closes {', '.join(f'{100 * c:.0f} %' for c in closed.values())} of {fedit}'s gap at equal rounds and bytes, "
                  f"{'better' if better else 'not better'} than the restart: {verdict}")
        print("(3) time to the same NLL is in the table's last but one column")

    def report(self) -> None:
        print("rates chosen on the validation draw:", json.dumps(self.results["rates"]), "of", json.dumps(self.results["tuning"]), "\n")
        self.table()
        print()
        for name, run in self.runs.items():
            for line in run.lines:
                if "handover_dropped" in line and run.arm.startswith("slora"):
                    print(f"{name}: hand-over after round {line['round']} dropped {100 * line['handover_dropped']:.1f} % of the energy")
        print()
        self.verdicts()

    def plot(self, path: pathlib.Path) -> None:
        try:
            import matplotlib
            matplotlib.use("Agg")
            import matplotlib.pyplot as plt
        except ImportError:
            sys.exit("--plot needs matplotlib: pip install matplotlib")
        plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
                             "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e6e6e6",
                             "legend.frameon": False, "savefig.bbox": "tight", "svg.hashsalt": "lorikeet", "svg.fonttype": "none"})
        colors = {"full": "#000000", "fedit": "#0072B2", "fedit*": "#56B4E9", "slora": "#D55E00", "slora1": "#E69F00", "restart": "#999999", "ffa": "#009E73",
                  "rolora": "#CC79A7", "flex": "#8c564b", "flora": "#7f3fbf", "fedex": "#b8a800"}
        panels = [("0.1", seed, f"alpha 0.1, seed {seed}") for seed in self.size.seeds] + [("inf", self.size.seeds[0], "all clients alike")]
        figure, axes = plt.subplots(1, len(panels), figsize=(11, 4), sharey=True, constrained_layout=True)
        for axis, (alpha, seed, title) in zip(axes, panels, strict=True):
            for run in self.runs.values():
                if (run.alpha, run.seed) != (alpha, seed) or run.arm not in colors:
                    continue
                strong = run.arm in ("full", "fedit", "slora", "restart")
                axis.plot([line["round"] for line in run.lines], [mean_loss(line) for line in run.lines], color=colors[run.arm], label=run.arm,
                          linewidth=1.8 if strong else 1, linestyle="-" if strong else "--")
            axis.set_title(title), axis.set_xlabel("round"), axis.set_yscale("log"), axis.legend(fontsize=7.5, ncol=2)
        axes[0].set_ylabel("NLL of the global model, mean of the tasks")
        figure.savefig(path, metadata={"Date": None})
        path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", path.read_text()))  # a hundredth of a point is enough


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lorikeet", default="build/cpu-release/bin/lorikeet")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("build/federated"))
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a smoke test of the script")
    parser.add_argument("--report", action="store_true", help="only of what WORK/results.json has")
    parser.add_argument("--plot", type=pathlib.Path, help="SVG file for the loss curves")
    args = parser.parse_args()
    size = Size(args.small)
    work = (args.work / "small" if args.small else args.work).resolve()
    if not args.report:
        Experiment(args.lorikeet, work, size, args.threads).all_runs()
    findings = Findings(json.loads((work / "results.json").read_text()), size)
    findings.report()
    if args.plot:
        findings.plot(args.plot)


if __name__ == "__main__":
    main()
