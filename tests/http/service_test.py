# SPDX-License-Identifier: Apache-2.0
"""The shipped unit and what surrounds a service: system calls it may make, notifications, variables of an orchestrator, --check-config."""
import ctypes
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import threading
import unittest

from harness import BINARY, Directory, MODEL, PATIENCE, wait_for
from security_test import make_certificate

UNIT = pathlib.Path("packaging/lorikeet.service")


def settings(name: str) -> list:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)


def expand(word: str) -> set:
    """A system call, or what systemd's group of them holds."""
    if not word.startswith("@"):
        return {word}
    lines = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.splitlines()[1:]
    members = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return set().union(*(expand(member) for member in members)) if members else set()


def allowed_calls() -> set:
    """As systemd reads the unit: the first line says what is allowed, the later ones add or take away. Its own minimum is always in."""
    allowed = expand("@default")
    for line in settings("SystemCallFilter"):
        words = set().union(*(expand(word) for word in line.removeprefix("~").split()))
        allowed = allowed - words if line.startswith("~") else allowed | words
    return allowed


class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Instruction))]


def restrict_to(numbers: list):
    """What systemd does before it starts the service: everything else is EPERM."""
    load, equal, leave = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1
    code = [Instruction(load, 0, 0, 0)]
    for number in numbers:
        code += [Instruction(equal, 0, 1, number), Instruction(leave, 0, 0, allow)]
    code.append(Instruction(leave, 0, 0, refuse))
    program = Program(len(code), (Instruction * len(code))(*code))
    libc = ctypes.CDLL(None, use_errno=True)

    def apply():
        if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, ctypes.byref(program), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "seccomp")
    return apply


class Unit(Directory):
    def test_its_system_calls_are_enough(self):
        header = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
        if platform.machine() != "x86_64" or not header.exists() or shutil.which("systemd-analyze") is None:
            self.skipTest("needs systemd-analyze and the numbers of system calls")
        numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
        wanted = sorted(int(numbers[name]) for name in allowed_calls() if name in numbers)
        # subprocess itself still has to get to the program.
        preexec = restrict_to(wanted)
        server = self.start(state=self.path("state.db"), adapters=("sql",), preexec=preexec)
        self.assertEqual(server.chat(max_tokens=4).status, 200)
        nice = {}
        for task in pathlib.Path(f"/proc/{server.process.pid}/task").iterdir():
            name, rest = (task / "stat").read_text().split(" (", 1)[1].rsplit(") ", 1)
            nice[name] = int(rest.split()[16])
        own = os.nice(0)
        self.assertEqual(nice["lk-engine"], own + 3, nice)
        self.assertEqual(nice["lk-http"], own, nice)
        limit = re.search(r"Max open files +(\d+)", pathlib.Path(f"/proc/{server.process.pid}/limits").read_text())[1]
        self.assertGreaterEqual(int(limit), min(16384, int(re.search(r"Max open files +\d+ +(\d+)", pathlib.Path("/proc/self/limits").read_text())[1])))
        server.stop(0)

    def test_systemd_understands_it(self):
        if shutil.which("systemd-analyze") is None:
            self.skipTest("needs systemd-analyze")
        text = UNIT.read_text().replace("/usr/bin/lorikeet", BINARY)
        unit = self.path("lorikeet.service")
        pathlib.Path(unit).write_text(text)
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=PATIENCE, check=False)
        self.assertEqual([line for line in done.stderr.splitlines() if "lorikeet.service" in line], [])


class Manager:
    """A service manager's end of the notification socket."""

    def __init__(self, path: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.messages: list[str] = []
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self):
        while True:
            try:
                self.messages.append(self.socket.recv(4096).decode())
            except OSError:
                return

    def count(self, word: str) -> int:
        return sum(word in message.split("\n") for message in list(self.messages))


class Notifications(Directory):
    def start_watched(self, *args: str, **kwargs):
        path = self.path("notify")
        manager = Manager(path)
        self.addCleanup(manager.socket.close)
        server = self.start(*args, environment={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}, **kwargs)
        return manager, server

    def test_life(self):
        manager, server = self.start_watched(adapters=("sql",))
        wait_for(lambda: manager.count("READY=1") == 1, "READY")
        wait_for(lambda: manager.count("WATCHDOG=1") >= 5, "the watchdog's messages")
        server.signal(signal.SIGHUP)
        wait_for(lambda: manager.count("RELOADING=1") == 1 and manager.count("READY=1") == 2, "the reload")
        server.stop(0)
        wait_for(lambda: manager.count("STOPPING=1") == 1, "STOPPING")

    def test_a_stuck_server_says_nothing(self):
        # Steps of seconds: a large model on one thread.
        config = json.loads(pathlib.Path(MODEL, "config.json").read_text())
        config.update(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, num_attention_heads=16, num_key_value_heads=16, head_dim=64, max_position_embeddings=8192)
        pathlib.Path(self.path("config.json")).write_text(json.dumps(config))
        manager, server = self.start_watched("--stuck-after", "1", "--step-tokens", "4096", adapters=(), model=("--dummy", self.path("config.json")))
        stuck = lambda: server.get("/live").status == 503
        prompt = [i % 100 for i in range(1000)]
        asking = threading.Thread(target=server.complete, args=(prompt,), kwargs={"model": "base", "max_tokens": 1}, daemon=True)
        asking.start()
        wait_for(lambda: stuck() or not asking.is_alive(), "a long step")
        if not asking.is_alive():
            self.skipTest("this machine is too fast for it")
        before = manager.count("WATCHDOG=1")
        looks = 0
        while stuck():
            after = manager.count("WATCHDOG=1")
            looks += 1
        self.assertLessEqual(after - before, 1, f"in {looks} looks")
        asking.join(PATIENCE)
        wait_for(lambda: manager.count("WATCHDOG=1") > after + 1, "its voice again")


class Variables(Directory):
    def run_serve(self, *args: str, **variables: str):
        env = {"PATH": os.environ["PATH"], "HOME": self.dir, **variables}
        return subprocess.run([BINARY, "serve", MODEL, "--no-state", "--print-config", *args], capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)

    def test_service_discovery_is_skipped(self):
        found = {"LORIKEET_SERVICE_HOST": "10.0.0.1", "LORIKEET_SERVICE_PORT": "80", "LORIKEET_SERVICE_PORT_HTTP": "80", "LORIKEET_PORT_80_TCP": "tcp://10.0.0.1:80",
                 "LORIKEET_PORT_80_TCP_PROTO": "tcp", "LORIKEET_PORT_80_TCP_PORT": "80", "LORIKEET_PORT_80_TCP_ADDR": "10.0.0.1", "LORIKEET_PORT_53_UDP_ADDR": "10.0.0.1",
                 "LORIKEET_ADMIN_SERVICE_HOST": "10.0.0.2", "LORIKEET_ADMIN_PORT": "tcp://10.0.0.2:9", "LORIKEET_ADMIN_PORT_9_SCTP": "sctp://10.0.0.2:9"}
        for url in ("tcp://10.0.0.1:80", "udp://10.0.0.1:53", "sctp://[fd00::1]:9"):
            done = self.run_serve(LORIKEET_PORT=url, **found)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("\nport = 8000\n", done.stdout)
        done = self.run_serve(LORIKEET_PORT="81", **found)
        self.assertIn("\nport = 81\n", done.stdout)
        self.assertNotEqual(self.run_serve(LORIKEET_PORT="http://10.0.0.1:80").returncode, 0)

    def test_misspelt_ones_are_named(self):
        done = self.run_serve(LORIKEET_MAX_QEUE="7", LORIKEET_API_KEY="x" * 16)
        self.assertEqual(done.returncode, 0)
        self.assertIn("LORIKEET_MAX_QEUE", done.stderr)
        self.assertNotIn("LORIKEET_API_KEY", done.stderr)
        self.assertNotIn("x" * 16, done.stdout + done.stderr)


class CheckConfig(Directory):
    def check(self, *args: str, **variables: str):
        env = {"PATH": os.environ["PATH"], "HOME": self.dir, **variables}
        return subprocess.run([BINARY, "serve", "--check-config", *args], capture_output=True, text=True, timeout=PATIENCE, env=env, check=False)

    def test_refuses_what_serve_would(self):
        no_state = (MODEL, "--no-state")
        pathlib.Path(self.path("plain")).write_text("")
        pathlib.Path(self.path("key")).write_text("short\n")
        os.makedirs(self.path("empty"))
        rows = ((no_state, ("--host", "0.0.0.0"), "without any API key"), (no_state, ("--admin", "0.0.0.0:0"), "without any API key"),
                (no_state, ("--host", "192.0.2.1", "--insecure"), "192.0.2.1"), (no_state, ("--admin", "nonsense"), "nonsense"),
                (no_state, ("--unix-socket", "/nothing/x.sock"), "x.sock"), (no_state, ("--tls-cert", self.path("a"), "--tls-key", self.path("b")), self.path("a")),
                (no_state, ("--tls-cert", self.path("a")), "--tls-key"), (no_state, ("--memory", "524288GiB"), "too much"), (no_state, ("--lora-root", self.path("none")), "none"),
                (no_state, ("--lora-root", self.path("{tenants}")), "{tenant}"), (no_state, ("--lora-dir", self.path("{tenant}")), "--lora-root"),
                (no_state, ("--lora", f"x={self.path('empty')}"), "adapter_config.json"), (no_state, ("--lora", f"../x={self.path('empty')}"), "name"),
                (no_state, ("--log-file", self.path("none", "log")), "none"), (no_state, ("--api-key-file", self.path("key")), "16 to 200"),
                (no_state, ("--api-key-file", self.path("none")), "none"), (no_state, ("--insecure", "--require-keys"), "--require-keys"),
                ((MODEL,), ("--state", self.path("plain", "state.db")), "plain"), ((MODEL,), ("--state", "/dev/null"), "regular file"),
                ((self.path("empty"), "--no-state"), (), "config.json"))
        for base, args, words in rows:
            with self.subTest(args=args):
                done = self.check(*base, *args)
                self.assertNotEqual(done.returncode, 0, done.stdout)
                self.assertIn(words, done.stderr)
        self.assertEqual(os.listdir(self.path("empty")), [])

    def test_changes_nothing_and_says_ok(self):
        done = self.check(MODEL, "--state", self.path("sub", "state.db"), "--log-file", self.path("log"), "--port", "0")
        self.assertEqual((done.returncode, done.stdout.splitlines()[-1]), (0, "configuration OK"), done.stderr)
        self.assertFalse(os.path.exists(self.path("sub")) or os.path.exists(self.path("log")))

    def test_beside_the_running_server(self):
        server = self.start(state=self.path("state.db"), adapters=())
        done = self.check(MODEL, "--state", self.path("state.db"), "--port", server.address.rsplit(":", 1)[1])
        self.assertEqual(done.returncode, 0, done.stderr)
        server.stop(0)

    def test_keys_count_from_wherever_they_come(self):
        pathlib.Path(self.path("key")).write_text("k" * 32 + "\n")
        for args, variables in ((("--api-key-file", self.path("key")), {}), ((), {"LORIKEET_API_KEY": "k" * 32}), (("--require-keys",), {})):
            done = self.check(MODEL, "--state", self.path("state.db"), "--host", "0.0.0.0", "--port", "0", *args, **variables)
            self.assertEqual(done.returncode, 0, done.stderr)
        cert, key = self.path("cert.pem"), self.path("key.pem")
        if make_certificate(cert, key):
            self.assertEqual(self.check(MODEL, "--no-state", "--port", "0", "--tls-cert", cert, "--tls-key", key).returncode, 0)


if __name__ == "__main__":
    unittest.main()
