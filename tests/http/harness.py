# SPDX-License-Identifier: Apache-2.0
"""Starts a real `lorikeet serve` and talks to it with the standard library only."""
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import unittest

BINARY = os.path.abspath(os.environ.get("LORIKEET", "build/cpu-release/bin/lorikeet"))
MODEL = os.path.abspath("examples/demo/model")
ADAPTERS = os.path.abspath("examples/demo/adapters")
NAMES = ("dates", "json", "math", "sort", "sql", "tag")
PATIENCE = 60  # seconds: of a machine that is busy with other things


class Answer:
    def __init__(self, status: int, headers: dict, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.body[:400]!r}"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


def wait_for(condition, what: str, patience: float = PATIENCE):
    """The first true value of condition()."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {patience} s")
        time.sleep(0.02)


def to_bytes(body) -> bytes | None:
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()


class Server:
    """One process. `log` collects its standard error, `address` is where clients connect."""

    def __init__(self, *args: str, adapters=NAMES, state: str | None = None, environment: dict | None = None, tls=None, quick: bool = True, log_file: str | None = None,
                 model: tuple = (MODEL,), preexec=None):
        command = [BINARY, "serve", *model, "--threads", "1", "--log-format", "json"]
        if "--memory" not in args:
            command += ["--memory", "256MiB"]
        if "--port" not in args:
            command += ["--port", "0"]
        if quick:
            command += ["--drain-grace", "0.1"]
        for name in adapters:
            command += ["--lora", f"{name}={ADAPTERS}/{name}"]
        command += ["--state", state] if state else ["--no-state"]
        if log_file:
            command += ["--log-file", log_file]
        self.tls = tls
        self.log_file = log_file
        self.home = tempfile.mkdtemp()
        env = {"PATH": os.environ["PATH"], "HOME": self.home, **(environment or {})}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"):
            if name in os.environ:
                env[name] = os.environ[name]
        self.process = subprocess.Popen([*command, *args], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env,
                                        preexec_fn=preexec)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        self.address = ""
        wait_for(lambda: self.event("ready") or self.process.poll() is not None, "ready")
        ready = self.event("ready")
        if not ready:
            self.stop()
            raise RuntimeError("the server did not start: " + self.log)
        self.address = ready["address"]

    def read_log(self):
        for line in self.process.stderr:
            self.lines.append(line.decode(errors="replace"))

    @property
    def log(self) -> str:
        return "".join(list(self.lines))

    def events(self, name: str) -> list:
        found = []
        lines = list(self.lines)
        if self.log_file and os.path.exists(self.log_file):
            lines += pathlib.Path(self.log_file).read_text().splitlines()
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == name:
                    found.append(entry)
        return found

    def event(self, name: str):
        found = self.events(name)
        return found[-1] if found else None

    def connect(self, address: str | None = None) -> http.client.HTTPConnection:
        address = address or self.address
        if address.startswith("unix:"):
            return UnixConnection(address[5:])
        host, port = address.rsplit(":", 1)
        if self.tls:
            return http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=self.tls)
        return http.client.HTTPConnection(host, int(port), timeout=PATIENCE)

    def call(self, method: str, path: str, body=None, headers: dict | None = None, key: str | None = None, address: str | None = None) -> Answer:
        connection = self.connect(address)
        sent = dict(headers or {})
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        if key:
            sent["Authorization"] = f"Bearer {key}"
        try:
            connection.request(method, path, to_bytes(body), {k: v for k, v in sent.items() if v is not None})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **kwargs) -> Answer:
        return self.call("GET", path, **kwargs)

    def post(self, path: str, body=None, **kwargs) -> Answer:
        return self.call("POST", path, body, **kwargs)

    def chat(self, text: str = "Which customers live in Riga?", model: str = "sql", key: str | None = None, headers: dict | None = None, **fields) -> Answer:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"model": model, "messages": messages, **fields}, key=key, headers=headers)

    def complete(self, prompt="Once upon a time", model: str = "base", key: str | None = None, headers: dict | None = None, **fields) -> Answer:
        return self.post("/v1/completions", {"model": model, "prompt": prompt, **fields}, key=key, headers=headers)

    @contextlib.contextmanager
    def open_get(self, path: str, key: str | None = None):
        """The head of an answer whose body nobody waits for."""
        with contextlib.closing(self.connect()) as connection:
            connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
            yield connection.getresponse()

    def open_stream(self, path: str, body: dict, key: str | None = None) -> "Stream":
        connection = self.connect()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request("POST", path, json.dumps({**body, "stream": True}), headers)
        return Stream(connection)

    def stream(self, path: str, body: dict) -> list:
        """The events' JSON; checks the end mark."""
        with self.open_stream(path, body) as stream:
            return stream.rest()

    @contextlib.contextmanager
    def kept_busy(self, body: dict):
        """From the first token on until the end of the block somebody's completion runs: two clients send `body` over and over."""
        leaving, working = threading.Event(), threading.Event()

        def client():
            while not leaving.is_set():
                with self.open_stream("/v1/completions", body) as stream:
                    while not leaving.is_set() and stream.next() is not None:
                        working.set()

        clients = [threading.Thread(target=client, daemon=True) for _ in range(2)]
        for thread in clients:
            thread.start()
        try:
            if not working.wait(PATIENCE):
                raise AssertionError(f"no token within {PATIENCE} s")
            yield
        finally:
            leaving.set()
            for thread in clients:
                thread.join(PATIENCE)

    def raw(self, data: bytes, close_sending: bool = False) -> bytes:
        """Sends bytes and reads until the server closes, or has answered and is silent."""
        host, port = self.address.rsplit(":", 1)
        received = b""
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
                if close_sending:
                    connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while True:
                    if b"\r\n\r\n" in received and complete_answer(received):
                        break
                    piece = connection.recv(65536)
                    if not piece:
                        break
                    received += piece
        return received

    def status(self) -> dict:
        return self.get("/v1/status").json

    def signal(self, number: int):
        self.process.send_signal(number)

    def stop(self, expected: int | None = None) -> int:
        """SIGTERM, unless it ended already; the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.reader.join(PATIENCE)
            self.process.stderr.close()
            shutil.rmtree(self.home, ignore_errors=True)
        if expected is not None and code != expected:
            raise AssertionError(f"exit code {code}, expected {expected}: {self.log[-4000:]}")
        return code


def complete_answer(received: bytes) -> bool:
    head, _, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False


class Stream:
    """Server-sent events of one answer, one by one."""

    def __init__(self, connection: http.client.HTTPConnection):
        self.connection = connection
        self.response = connection.getresponse()
        self.status = self.response.status
        self.headers = {k.lower(): v for k, v in self.response.getheaders()}
        self.finished = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def next(self):
        """The next event's JSON, or None after [DONE]."""
        line = self.response.readline()
        while line.startswith(b":"):  # a stream that waits gets comments
            assert self.response.readline() == b"\n"
            line = self.response.readline()
        assert line.startswith(b"data: "), (self.status, line)
        assert self.response.readline() == b"\n"
        if line == b"data: [DONE]\n":
            assert self.response.read() == b""
            self.finished = True
            return None
        return json.loads(line[6:])

    def rest(self) -> list:
        events = []
        while (event := self.next()) is not None:
            events.append(event)
        return events


class ServerTest(unittest.TestCase):
    """One server per class; OPTIONS are its flags."""
    OPTIONS: tuple = ()
    ADAPTERS = NAMES
    server: Server

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.OPTIONS, adapters=cls.ADAPTERS)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop(expected=0)

    def good(self, answer: Answer, status: int = 200):
        self.assertEqual(answer.status, status, answer)
        return answer.json

    def refused(self, answer: Answer, status: int, *words: str, param: str | None = None, code: str | None = None) -> dict:
        """OpenAI's error shape with this status; the message contains the words."""
        self.assertEqual(answer.status, status, answer)
        self.assertTrue(answer.headers["content-type"].startswith("application/json"), answer.headers)
        body = answer.json
        self.assertEqual(list(body), ["error"], body)
        error = body["error"]
        self.assertEqual(set(error), {"message", "type", "param", "code"}, body)
        self.assertIsInstance(error["message"], str)
        self.assertTrue(error["message"])
        for word in words:
            self.assertIn(word, error["message"])
        if param is not None:
            self.assertEqual(error["param"], param, body)
        if code is not None:
            self.assertEqual(error["code"], code, body)
        return error


class Directory(unittest.TestCase):
    """A directory for the test, removed afterwards."""

    def setUp(self):
        self.dir = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)

    def path(self, *parts: str) -> str:
        return os.path.join(self.dir, *parts)

    def copy_adapter(self, source: str, *parts: str) -> str:
        """Puts a demo adapter there, complete at one moment, as an operator should."""
        target = self.path(*parts)
        pathlib.Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(os.path.join(ADAPTERS, source), target + ".partial~")
        os.rename(target + ".partial~", target)
        return target

    def start(self, *args: str, stop_code: int = 0, **kwargs) -> Server:
        server = Server(*args, **kwargs)
        self.addCleanup(lambda: server.process.poll() is None and server.stop(stop_code))
        return server

    def keys(self, *args: str) -> str:
        done = subprocess.run([BINARY, "keys", *args, "--state", self.path("state.db")], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()


def trusting(cert: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    return context
