# SPDX-License-Identifier: Apache-2.0
"""Members of a real etcd on this machine, to be stopped, killed and started again."""
import base64
import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from harness import PATIENCE, wait_for

PROGRAM = shutil.which("etcd") or ("/usr/bin/etcd" if os.path.exists("/usr/bin/etcd") else None)


class HeldPort:
    """A port for a program that has to be told one, below those that the system gives to anybody; nobody else of these tests
    (tests/testing/held_port.h has the same locks) gets it while it is held."""

    def __init__(self):
        directory = os.path.join(tempfile.gettempdir(), "lorikeet-test-ports")
        os.makedirs(directory, exist_ok=True)
        for i in range(10_000):
            self.number = 20_000 + (os.getpid() * 17 + i) % 10_000
            self.lock = open(os.path.join(directory, str(self.number)), "w")  # noqa: SIM115: closed when it is let go
            with contextlib.suppress(OSError), socket.socket() as listener:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", self.number))
                return
            self.lock.close()
        raise RuntimeError("no port is free")


class Etcd:
    def __init__(self, members: int = 1):
        self.directory = tempfile.mkdtemp()
        self.held = [HeldPort() for _ in range(2 * members)]
        self.ports = [(self.held[2 * i].number, self.held[2 * i + 1].number) for i in range(members)]
        self.processes: list = [None] * members
        for i in range(members):
            self.start(i)
        wait_for(self.healthy, "etcd")

    def start(self, i: int = 0):
        client, peer = (f"http://127.0.0.1:{port}" for port in self.ports[i])
        cluster = ",".join(f"m{k}=http://127.0.0.1:{port}" for k, (_, port) in enumerate(self.ports))
        with open(f"{self.directory}/m{i}.log", "ab") as log:
            self.processes[i] = subprocess.Popen(
                [PROGRAM, "--name", f"m{i}", "--data-dir", f"{self.directory}/m{i}", "--listen-client-urls", client, "--advertise-client-urls", client,
                 "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster, "--log-level", "error"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def healthy(self, i: int = 0) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.ports[i][0], timeout=2)) as connection:
            try:
                connection.request("GET", "/health")
                return b"true" in connection.getresponse().read()
            except OSError:
                return False

    def call(self, path: str, body: dict, i: int = 0) -> dict:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.ports[i][0], timeout=10)) as connection:
            connection.request("POST", path, json.dumps(body))
            return json.loads(connection.getresponse().read())

    def put(self, key: str, value: str):
        answer = self.call("/v3/kv/put", {name: base64.b64encode(text.encode()).decode() for name, text in (("key", key), ("value", value))})
        assert "header" in answer, answer

    def leader(self):
        """Its number, or nothing."""
        for i, process in enumerate(self.processes):
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                status = self.call("/v3/maintenance/status", {}, i) if process else {}
                if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                    return i
        return None

    def kill(self, i: int = 0):
        if self.processes[i]:
            self.processes[i].send_signal(signal.SIGCONT)
            self.processes[i].kill()
            self.processes[i].wait(PATIENCE)
            self.processes[i] = None

    def signal(self, number: int, i: int = 0):
        self.processes[i].send_signal(number)

    def stop(self):
        for i in range(len(self.processes)):
            self.kill(i)
        shutil.rmtree(self.directory, ignore_errors=True)
        for port in self.held:
            port.lock.close()

    def url(self, fleet: str = "test") -> str:
        return "etcd://" + ",".join(f"127.0.0.1:{port}" for port, _ in self.ports) + "/" + fleet
