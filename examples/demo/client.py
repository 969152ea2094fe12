#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Talks to a running `lorikeet serve` with the demo model: one mixed burst, answers side by side, task scores, throughput.

Usage: client.py URL     (Python's standard library only)
"""
import collections
import concurrent.futures
import http.client
import json
import pathlib
import sys
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).parent
CONCURRENCY = 64
local = threading.local()


def post(url: urllib.parse.ParseResult, path: str, body: dict) -> dict:
    """One request on this thread's kept-alive connection."""
    if not hasattr(local, "connection"):
        local.connection = http.client.HTTPConnection(url.hostname, url.port, timeout=600)
    local.connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = local.connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status} {answer['error']['message']}")
    return answer


def ask(url: urllib.parse.ParseResult, model: str, task: dict) -> tuple[str, dict]:
    """The answer of one model to a task of tasks/*.jsonl or prompts.jsonl, and its usage."""
    body = {"model": model, "max_tokens": task["max_tokens"], "temperature": 0, "stop": task["stop"]}
    if "messages" in task:
        answer = post(url, "/v1/chat/completions", {**body, "messages": task["messages"]})
        return answer["choices"][0]["message"]["content"].strip(), answer["usage"]
    answer = post(url, "/v1/completions", {**body, "prompt": task["prompt"]})
    return answer["choices"][0]["text"].strip(), answer["usage"]


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def clip(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def side_by_side(url: urllib.parse.ParseResult, pool: concurrent.futures.Executor) -> None:
    prompts = list({task["adapter"]: task for task in read(HERE / "prompts.jsonl") if "adapter" in task}.values())
    burst = [(task, model) for task in prompts for model in (task["adapter"], "base")]
    answers = dict(zip([(task["id"], model) for task, model in burst], pool.map(lambda item: ask(url, item[1], item[0])[0], burst)))
    print(f"\n==> one burst: {len(prompts)} questions, each to its own adapter and to the bare base model\n")
    for task in prompts:
        print(f"  {clip(task['messages'][-1]['content'], 100)}")
        print(f"    {task['adapter']:>6}  {clip(answers[task['id'], task['adapter']], 90)}")
        print(f"    {'base':>6}  {clip(answers[task['id'], 'base'], 90)}\n")


def score(url: urllib.parse.ParseResult, pool: concurrent.futures.Executor) -> bool:
    """Every held-out question through its own adapter and through the base, all mixed. True if the adapters did their task."""
    tasks = [task for path in sorted((HERE / "tasks").glob("*.jsonl")) for task in read(path)]
    jobs = [(task, model) for task in tasks for model in (task["adapter"], "base")]
    print(f"==> {len(jobs)} held-out questions in one mixed load, {CONCURRENCY} at a time, {len({t['adapter'] for t in tasks})} adapters and the base\n")
    begin = time.monotonic()
    results = list(pool.map(lambda job: ask(url, job[1], job[0]), jobs))
    seconds = time.monotonic() - begin
    right, total = collections.Counter(), collections.Counter()
    for (task, model), (answer, _) in zip(jobs, results):
        column = "base" if model == "base" else "own"
        total[task["adapter"], column] += 1
        right[task["adapter"], column] += answer == task["expected"].strip()
    print(f"  {'task':<8}{'own adapter':>14}{'base model':>14}")
    for adapter in sorted({task["adapter"] for task in tasks}):
        cells = [f"{100 * right[adapter, column] / total[adapter, column]:.1f} %" for column in ("own", "base")]
        print(f"  {adapter:<8}{cells[0]:>14}{cells[1]:>14}")
    prompt = sum(usage["prompt_tokens"] for _, usage in results)
    output = sum(usage["completion_tokens"] for _, usage in results)
    print(f"\n  {len(jobs) / seconds:.0f} requests/s, {output / seconds:.0f} output tokens/s, {(prompt + output) / seconds:.0f} tokens/s in all, "
          f"over HTTP, this client included")
    return all(right[task["adapter"], "own"] >= 0.9 * total[task["adapter"], "own"] for task in tasks)


def main() -> int:
    url = urllib.parse.urlparse(sys.argv[1])
    with concurrent.futures.ThreadPoolExecutor(CONCURRENCY) as pool:
        side_by_side(url, pool)
        good = score(url, pool)
    if not good:
        print("\nan adapter scored below 90 % on its own task: something is wrong", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
