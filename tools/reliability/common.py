# SPDX-License-Identifier: Apache-2.0
"""What the reliability gates share: a server process, a small HTTP client, statistics, rows of the report. Standard library only."""
import argparse
import asyncio
import contextlib
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "examples/demo"
TASKS = ("sql", "json", "math", "sort", "dates", "tag")
# A program that is started without saying where its state is fails, instead of touching the user's.
os.environ["LORIKEET_STATE"] = "/dev/null/name-a-state-file"


def arguments(description: str, **defaults) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "build/cpu-release/bin/lorikeet"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="append the measured figures to this file, one JSON line a run")
    parser.set_defaults(**defaults)
    return parser


def raise_file_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def percentile(values, q: float) -> float:
    """Linear between the nearest ranks; nan of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = q / 100 * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def quartiles(values) -> str:
    return f"[{percentile(values, 25):.2f}..{percentile(values, 75):.2f}]"


class Sandwich:
    """Rounds of three runs: alone, beside the disturbance, alone again. What is judged is the median of disturbed / mean of the two alone;
    the ratios of the two alone show how much the machine itself changes between two runs."""

    def __init__(self):
        self.rounds: list[tuple[float, float, float]] = []

    def add(self, before: float, beside: float, after: float) -> None:
        self.rounds.append((before, beside, after))

    def report(self, report, what: str, limit: float, unit: str = "ms") -> None:
        ratios = [2 * beside / (before + after) for before, beside, after in self.rounds]
        null = [after / before for before, _, after in self.rounds]
        alone = [value for before, _, after in self.rounds for value in (before, after)]
        ratio = percentile(ratios, 50)
        report.check(what, ratio <= limit,
                     f"{percentile(alone, 50):.1f} {unit} alone, {percentile([beside for _, beside, _ in self.rounds], 50):.1f} {unit} beside them: x {ratio:.3f} {quartiles(ratios)}; "
                     f"alone to alone x {percentile(null, 50):.3f} {quartiles(null)}; {len(self.rounds)} rounds", self.rounds)


# --- Server

class Server:
    """A `lorikeet serve` of its own, on a free port, with its log in a file."""

    def __init__(self, binary: str, *flags: str, model=str(DEMO / "model"), state: str | None = None, env=None, prefix=()):
        self.dir = tempfile.mkdtemp(prefix="lorikeet-reliability-")
        self.log_path = os.path.join(self.dir, "log")
        where = ["--state", state] if state else ["--no-state"]
        command = [*prefix, binary, "serve", *([model] if model else []), *where, "--port", "0", *map(str, flags)]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(env or {})})
        self.pid = self.process.pid
        self.host, self.port, self.key = "127.0.0.1", self._wait_ready(), None

    def _wait_ready(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(r" serves .* on https?://127\.0\.0\.1:(\d+)\n", self.log_text()):
                return int(found.group(1))
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"the server did not start:\n{pathlib.Path(self.log_path).read_text(errors='replace')[-4000:]}")

    def log_lines(self) -> list[dict]:
        lines = []
        with open(self.log_path, errors="replace") as log:
            for line in log:
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        lines.append(value)
        return lines

    def log_text(self) -> str:
        return pathlib.Path(self.log_path).read_text(errors="replace")

    def process_stats(self) -> dict:
        base = f"/proc/{self.pid}"
        with open(f"{base}/status") as file:
            fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        return {"rss": int(fields["VmRSS"].split()[0]) * 1024, "threads": int(fields["Threads"]), "fds": len(os.listdir(f"{base}/fd"))}

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time by thread name."""
        used: dict[str, float] = {}
        for task in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(OSError):
                with open(f"/proc/{self.pid}/task/{task}/schedstat") as file:
                    nanoseconds = int(file.read().split()[0])
                with open(f"/proc/{self.pid}/task/{task}/comm") as file:
                    name = file.read().strip()
                used[name] = used.get(name, 0) + nanoseconds / 1e9
        return used

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, keep: bool = False) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if not keep:
            shutil.rmtree(self.dir, ignore_errors=True)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            print(f"server {self.pid}: exit status {self.process.poll()}, end of its log:\n{self.log_text()[-3000:]}", file=sys.stderr)
        self.stop()

    # Asynchronous conveniences.
    async def call(self, method: str, path: str, body=None, key=None) -> "Response":
        async with Connection(self) as connection:
            return await connection.request(method, path, body, key=key)

    async def status(self) -> dict:
        return (await self.call("GET", "/v1/status")).json()

    async def metrics(self) -> "Metrics":
        return Metrics((await self.call("GET", "/metrics")).body.decode())

    async def wait_idle(self, seconds: float = 60) -> dict:
        """Until nothing runs, waits or is streamed; the status then."""
        end = time.monotonic() + seconds
        while True:
            status = await self.status()
            requests, adapters = status["requests"], status["adapters"]
            if requests["running"] == 0 and requests["waiting"] == 0 and requests["queued_tokens"] == 0 and status["http"]["open_streams"] == 0 and adapters["loading"] == 0:
                return status
            if time.monotonic() > end:
                raise RuntimeError(f"the server is not idle after {seconds} s: {status}")
            await asyncio.sleep(0.05)


# --- HTTP

class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)


class Closed(ConnectionError):
    """The peer closed where an answer should have gone on."""


class Connection:
    """One keep-alive connection; opened on first use, again when the server closed it."""

    def __init__(self, server, receive_buffer: int = 0):
        self.server, self.receive_buffer = server, receive_buffer
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    async def open(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if self.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (self.server.host, self.server.port))
        except BaseException:
            sock.close()
            raise
        # A small limit makes the stream stop reading when nobody asks for data: a stalled reader then really stalls.
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2048 if self.receive_buffer else 1 << 20)

    def close(self, reset: bool = False) -> None:
        if not self.writer:
            return
        if reset:
            sock = self.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()
        self.reader = self.writer = None

    @staticmethod
    def encode(method: str, path: str, body=None, key=None, headers=None) -> bytes:
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        if body is not None:
            lines += [f"content-length: {len(body)}", "content-type: application/json"]
        if key:
            lines.append(f"authorization: Bearer {key}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")

    async def send(self, method: str, path: str, body=None, key=None, headers=None) -> None:
        if not self.writer:
            await self.open()
        self.writer.write(self.encode(method, path, body, key or self.server.key, headers))
        await self.writer.drain()

    async def read_head(self) -> Response:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            raise Closed(f"closed after {len(error.partial)} bytes of the head") from None
        first, *lines = head[:-4].decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Response(int(first.split()[1]), headers)

    async def chunks(self, response: Response):
        """Pieces of the body as they come."""
        try:
            if response.headers.get("transfer-encoding") == "chunked":
                while True:
                    size = int(await self.reader.readline() or b"x", 16)
                    data = await self.reader.readexactly(size + 2)
                    if size == 0:
                        break
                    yield data[:-2]
            else:
                length = int(response.headers.get("content-length", 0))
                if length:
                    yield await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, ValueError):
            raise Closed("closed within the body") from None
        if response.headers.get("connection") == "close":
            self.close()

    async def request(self, method: str, path: str, body=None, key=None, headers=None) -> Response:
        await self.send(method, path, body, key, headers)
        response = await self.read_head()
        response.body = b"".join([piece async for piece in self.chunks(response)])
        return response

    async def events(self, response: Response):
        """Parsed `data:` events of a stream, to [DONE]."""
        rest = b""
        async for piece in self.chunks(response):
            rest += piece
            while (end := rest.find(b"\n\n")) >= 0:
                event, rest = rest[:end], rest[end + 2:]
                if not event.startswith(b"data: "):
                    continue
                yield None if event == b"data: [DONE]" else json.loads(event[6:])


# --- Metrics

class Metrics:
    """A parsed exposition: values by name and labels, histograms with quantiles."""

    def __init__(self, text: str):
        self.values: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                self.values[name] = float(value)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def get(self, name: str, default: float = 0) -> float:
        return self.values.get(name, default)

    def buckets(self, name: str) -> list[tuple[float, float]]:
        found = []
        for key, value in self.values.items():
            if key.startswith(name + "_bucket{"):
                found.append((float(re.search(r'le="([^"]+)"', key).group(1)), value))
        return sorted(found)

    def count(self, name: str) -> float:
        return self.get(name + "_count")

    def quantile(self, name: str, q: float, since: "Metrics | None" = None) -> float:
        """Upper bound of the bucket that holds the quantile: never flatters."""
        before = dict(since.buckets(name)) if since else {}
        counts = [(bound, count - before.get(bound, 0)) for bound, count in self.buckets(name)]
        total = counts[-1][1] if counts else 0
        for bound, count in counts:
            if total and count >= q / 100 * total:
                return bound
        return math.nan


# --- Adapters made from the demo's

def make_adapters(directory: str, factors) -> dict[str, str]:
    """Copies of the demo's adapters with other strengths: name -> directory. All answer differently."""
    made = {}
    for task in TASKS:
        for factor in factors:
            name = f"{task}-{factor:g}".replace(".", "_")
            target = os.path.join(directory, name)
            shutil.copytree(DEMO / "adapters" / task, target)
            path = os.path.join(target, "adapter_config.json")
            with open(path) as file:
                config = json.load(file)
            config["lora_alpha"] *= factor
            with open(path, "w") as file:
                json.dump(config, file)
            made[name] = target
    return made


def task_prompts(per_task: int) -> list[str]:
    """Prompts of the demo's tasks, without their adapters."""
    prompts = []
    for task in TASKS:
        with open(DEMO / "tasks" / f"{task}.jsonl") as file:
            for line in list(file)[:per_task]:
                value = json.loads(line)
                prompts.append(value["prompt"] if "prompt" in value else value["messages"][-1]["content"])
    return prompts


# --- Report

def commit() -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


class Report:
    """Checks of one gate: each is a figure and whether it is good enough. Prints a table row and decides the exit status."""

    def __init__(self, gate: str, options):
        self.gate, self.options = gate, options
        self.figures: list[tuple[str, str, bool | None]] = []
        self.raw: dict = {}
        self.began = time.monotonic()
        self.load_before = os.getloadavg()[0]

    def note(self, what: str, shown, raw=None) -> None:
        self.figures.append((what, str(shown), None))
        self.raw[what] = shown if raw is None else raw

    def check(self, what: str, ok: bool, shown, raw=None) -> None:
        self.figures.append((what, str(shown), bool(ok)))
        self.raw[what] = shown if raw is None else raw

    def finish(self) -> int:
        failed = [what for what, _, ok in self.figures if ok is False]
        text = "; ".join(f"{what} {shown}{'' if ok is None else ' ok' if ok else ' **FAILED**'}" for what, shown, ok in self.figures)
        print(f"| {self.gate} | {text} | {'FAILED: ' + ', '.join(failed) if failed else 'passed'} |")
        record = {"gate": self.gate, "passed": not failed, "commit": commit(), "seconds": round(time.monotonic() - self.began, 1),
                  "load": [self.load_before, os.getloadavg()[0]], "arguments": sys.argv[1:], "figures": self.raw}
        if self.options.json:
            with open(self.options.json, "a") as file:
                file.write(json.dumps(record) + "\n")
        return 1 if failed else 0


def run(gate: str, options, main) -> None:
    """Runs `main(options, report)` and exits with the gate's verdict."""
    raise_file_limit()
    random.seed(options.seed)
    report = Report(gate, options)
    asyncio.run(main(options, report))
    sys.exit(report.finish())
