#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Black-box tests of `lorikeet federate server` and its clients on the demo's base. Usage: federate_http_test.py BINARY"""
import hashlib
import http.client
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BINARY = os.path.abspath(sys.argv.pop(1) if len(sys.argv) > 1 else "build/cpu-release/bin/lorikeet")
MODEL = "examples/demo/model"
PATIENCE = 120  # seconds for what must come
CLIENTS = ("c0", "c1", "c2")


def full_disk():
    """Files may not grow beyond a few kilobytes: what a full disk is to a program."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, 8 << 10))


class FederateHttp(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.dir)
        self.keys = self.dir / "keys.db"
        self.tokens = {}
        for number, client in enumerate(CLIENTS):
            lines = [json.dumps({"prompt": f"{number} + {n} =", "completion": f" {number + n}"}) for n in range(3 + number)]
            (self.dir / f"{client}.jsonl").write_text("\n".join(lines) + "\n")
            self.key(client)
        with socket.socket() as probe:  # clients find the server again after it was killed
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.number = 0

    def key(self, tenant, scope="federate"):
        done = subprocess.run([BINARY, "keys", "create", "--state", self.keys, "--tenant", tenant, "--scope", scope], capture_output=True, text=True, check=True)
        self.tokens[tenant] = done.stdout.strip()
        (self.dir / f"{tenant}.key").write_text(done.stdout)

    def run_file(self, clients, rule="fedavg", **more):
        run = {"base": MODEL, "dtype": "f32", "block_tokens": 64, "threads": 1, "rounds": 2, "seed": 11, "keep": 9,
               "adapter": {"rank": 2, "alpha": 3, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 3]},
               "train": {"steps": 2, "batch_samples": 2, "lr": 5e-3}, "rule": {"name": rule}, "clients": clients}
        self.number += 1
        path = self.dir / f"run{self.number}.yaml"
        path.write_text(json.dumps(run | more))  # JSON is YAML
        return path

    def names(self, **more):
        return {"names": list(CLIENTS)} | more

    def simulate(self, rule="fedavg", per_round=3, **more):
        run = self.run_file({"data": str(self.dir / "c?.jsonl"), "per_round": per_round}, rule, **more)
        out = self.dir / f"simulated{self.number}"
        subprocess.run([BINARY, "federate", "simulate", run, "--out", out], check=True, capture_output=True, timeout=PATIENCE)
        return out

    def start(self, name, *args, preexec=None):
        log = (self.dir / f"{name}.log").open("a")
        process = subprocess.Popen([BINARY, "federate", *map(str, args)], stdout=log, stderr=log, preexec_fn=preexec)
        log.close()
        self.addCleanup(process.wait)
        self.addCleanup(lambda: process.poll() is None and process.kill())
        return process

    def log(self, name):
        return (self.dir / f"{name}.log").read_text()

    def wait_until(self, what, name="server"):
        end = time.monotonic() + PATIENCE
        while not what():
            self.assertLess(time.monotonic(), end, self.log(name))
            time.sleep(0.02)

    def server(self, run, *more, state="state", preexec=None):
        log = self.dir / "server.log"
        before = log.read_text().count("http://") if log.exists() else 0
        process = self.start("server", "server", run, "--state", self.dir / state, "--keys", self.keys, "--port", self.port, *more, preexec=preexec)
        self.wait_until(lambda: process.poll() is not None or self.log("server").count("http://") + self.log("server").count("https://") > before)
        return process

    def client(self, name, *more, base=MODEL, key=None, preexec=None, scheme="http"):
        return self.start(name, "client", "--server", f"{scheme}://127.0.0.1:{self.port}", "--key-file", self.dir / f"{key or name}.key",
                          "--data", self.dir / f"{name}.jsonl", "--base", base, "--state", self.dir / f"own-{name}", "--threads", 1, *more, preexec=preexec)

    def end(self, process, code=0, name="server"):
        self.assertEqual(process.wait(PATIENCE), code, self.log(name))

    def call(self, method, path, body=b"", tenant="c0", headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = dict(headers or {})
        if tenant:
            sent["authorization"] = f"Bearer {self.tokens[tenant]}"
        try:
            connection.request(method, path, body if isinstance(body, bytes) else json.dumps(body), sent)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was refused by its head: the answer is there
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        is_json = answer.getheader("content-type", "").startswith("application/json") and data
        return answer.status, json.loads(data) if is_json else data

    def join(self, *clients):
        status, refused = self.call("POST", "/v1/federated/join", {"base_digest": "0123"})
        self.assertEqual((status, refused["error"]["code"]), (409, "other_base"))
        digest = refused["error"]["message"].split("this run's has ")[1].split(":")[0]
        for client in clients:
            self.assertEqual(self.call("POST", "/v1/federated/join", {"base_digest": digest, "num_examples": 3}, client)[0], 200)
        return digest

    def task(self, tenant="c0", after=0, wait=30):
        return self.call("GET", f"/v1/federated/task?after={after}&wait={wait}", tenant=tenant)

    def fetch(self, task, tenant="c0"):
        status, data = self.call("GET", f"/v1/federated/blob/{task['sha256']}", tenant=tenant)
        self.assertEqual((status, hashlib.sha256(data).hexdigest()), (206, task["sha256"]))
        path = self.dir / f"{tenant}.round"
        path.write_bytes(data)
        return path

    def train(self, given, tenant="c0"):
        out = self.dir / f"{tenant}.update"
        subprocess.run([BINARY, "federate", "client", "--round", given, "--data", self.dir / f"{tenant}.jsonl", "--base", MODEL, "--out", out, "--threads", "1"],
                       check=True, capture_output=True, timeout=PATIENCE)
        return out.read_bytes()

    def adapter(self, state="state"):
        return (self.dir / state / "latest/adapter_model.safetensors").read_bytes()

    def ledger(self, state="state"):
        return [json.loads(line) for line in (self.dir / state / "ledger.jsonl").read_text().splitlines()]

    # --- The run

    def test_over_http_it_is_the_simulation_s_adapter(self):
        for rule, more in (("slora", {}), ("flora", {"ranks": {"c0": 1}, "wire": "bf16"}), ("fedsa", {})):
            with self.subTest(rule):
                simulated = self.simulate(rule, per_round=2, **more)
                server = self.server(self.run_file(self.names(per_round=2), rule, **more), state=rule)
                for process, client in [(self.client(client), client) for client in CLIENTS]:
                    self.end(process, name=client)
                self.end(server)
                mine, theirs = (path / "latest/adapter_model.safetensors" for path in (self.dir / rule, simulated))
                if rule != "fedsa":  # there B stays with the clients
                    self.assertEqual(mine.read_bytes(), theirs.read_bytes())
                else:
                    self.assertEqual(len(list((self.dir / "own-c0").glob("run-*/own-*"))), sum(e["event"] == "received" and e["client"] == "c0" for e in self.ledger(rule)))
                for client in CLIENTS:
                    self.assertFalse(list((self.dir / f"own-{client}").glob("*-*.safetensors*")), "what was sent is not kept")
                    shutil.rmtree(self.dir / f"own-{client}")

    def test_killed_server_and_clients_go_on_with_the_same_bytes(self):
        simulated = self.simulate(rounds=4)
        run = self.run_file(self.names(), rounds=4)
        server = self.server(run)
        clients = {client: self.client(client) for client in CLIENTS}
        for round_ in (1, 2, 3):
            self.wait_until(lambda r=round_: (self.dir / f"state/rounds/checkpoint-{r}").exists())
            victim = CLIENTS[round_ - 1]
            clients[victim].kill()
            clients[victim].wait()
            server.kill()
            server.wait()
            clients[victim] = self.client(victim)
            server = self.server(run)
        for client, process in clients.items():
            self.end(process, name=client)
        self.end(server)
        self.assertEqual(self.adapter(), (simulated / "latest/adapter_model.safetensors").read_bytes())
        self.assertIn("goes on after round", self.log("server"))

    def test_stopped_it_says_how_to_go_on(self):
        run = self.run_file(self.names())
        server = self.server(run)
        client = self.client("c0")
        self.wait_until(lambda: "joined" in self.log("c0"), "c0")
        for process, name in ((server, "server"), (client, "c0")):
            process.send_signal(signal.SIGTERM)
            self.end(process, 130, name)
        self.assertIn("goes on", self.log("server"))

    # --- Failures

    def test_who_is_asked_is_a_secret_where_privacy_rests_on_it(self):
        self.key("boss", "metrics")
        unseen = {"asked", "received", "refused", "failed", "attempt", "missing", "clients"}
        for privacy in ({}, {"privacy": {"clip": 1.0, "noise": 1.0, "sampling": "poisson"}}):
            server = self.server(self.run_file(self.names(per_round=2), **privacy), state="poisson" if privacy else "fixed")
            self.join(*CLIENTS)
            status = self.call("GET", "/v1/federated/status")[1]
            self.assertEqual(unseen & set(status), set() if privacy else unseen - {"missing", "clients"})
            self.assertEqual(unseen - set(self.call("GET", "/v1/federated/status", tenant="boss")[1]), set())
            server.send_signal(signal.SIGTERM)
            server.wait(PATIENCE)

    def test_doors_are_shut_to_others(self):
        for tenant, scope in (("guest", "infer"), ("stranger", "federate"), ("boss", "metrics")):
            self.key(tenant, scope)
        self.server(self.run_file(self.names()))
        for tenant, code in ((None, 401), ("guest", 403), ("stranger", 403), ("boss", 403)):
            self.assertEqual(self.task(tenant)[0], code, tenant)
        self.assertEqual(self.call("GET", "/v1/federated/status", tenant="guest")[0], 403)
        self.assertNotIn("clients", self.call("GET", "/v1/federated/status")[1])
        self.assertEqual(self.call("GET", "/v1/federated/status", tenant="boss")[1]["clients"], {})
        self.assertEqual(self.call("GET", "/health", tenant=None)[0], 200)
        self.assertEqual(self.call("GET", "/v1/models")[0], 404)
        self.assertEqual(self.call("DELETE", "/v1/federated/status")[0], 405)
        self.assertEqual(self.task()[1]["error"]["code"], "not_joined")
        for body in (b"", b"[]", b"{\"base_digest\": 3}", b"{\"base_digest\": \"a\", \"path\": \"/etc\"}", b"x" * (65 << 10)):
            self.assertIn(self.call("POST", "/v1/federated/join", body)[0], (400, 413))
        subprocess.run([BINARY, "keys", "revoke", "--state", self.keys, self.tokens["c2"]], check=True, capture_output=True)
        self.wait_until(lambda: self.task("c2", wait=0)[0] == 401)
        self.assertEqual(self.client("c1", key="guest").wait(PATIENCE), 1)
        self.assertIn("scope", self.log("c1"))

    def test_another_base_is_told_both_digests(self):
        self.server(self.run_file(self.names()))
        other = self.dir / "model"
        shutil.copytree(MODEL, other)
        (other / "extra.json").write_text("{}")
        self.end(self.client("c0", base=other), 1, "c0")
        self.assertRegex(self.log("c0"), r"digest [0-9a-f]{64}, this run's has [0-9a-f]{64}")

    def test_what_becomes_of_an_update(self):
        server = self.server(self.run_file(self.names(quorum=1)), "--deadline", 600)
        self.join(*CLIENTS)
        status, task = self.task()
        self.assertEqual((status, task["round"]), (200, 1))
        other = self.task("c1")[1]
        self.assertEqual(self.call("GET", f"/v1/federated/blob/{other['sha256']}")[0], 404, "another's")
        given = self.fetch(task)
        part = {"range": "bytes=100-199"}
        self.assertEqual(self.call("GET", f"/v1/federated/blob/{task['sha256']}", headers=part), (206, given.read_bytes()[100:200]))
        self.assertEqual(self.call("GET", f"/v1/federated/blob/{task['sha256']}", headers={"range": "bytes=99999999-"})[0], 416)
        good = self.train(given)
        put = lambda data, round_=1, tenant="c0": self.call("PUT", f"/v1/federated/updates/{round_}", data, tenant)
        status, refused = put(good, 7)
        self.assertEqual((status, refused["error"]["code"]), (409, "stale_update"))
        self.assertEqual(put(good), (200, {"round": 1}))
        self.assertEqual(put(good), (200, {"round": 1}), "again is no harm")
        self.assertEqual(put(good.replace(b'"tokens', b' "token', 1))[1]["error"]["code"], "second_update")
        self.assertEqual(self.call("PUT", "/v1/federated/updates/x", good)[0], 404)
        self.assertEqual(put(b"x" * (4 << 20), tenant="c1")[0], 413)
        mine = self.train(self.fetch(self.task("c2")[1], "c2"), "c2")
        status, refused = put(mine[:-4] + struct.pack("<f", float("nan")), tenant="c2")
        self.assertEqual((status, refused["error"]["code"]), (422, "bad_update"))
        # Everybody has answered: the next round begins, and who was refused is asked again.
        self.assertEqual(self.task("c2", task["number"])[1]["round"], 2)
        self.assertEqual(put(mine, tenant="c2")[1]["error"]["code"], "stale_update")
        self.assertEqual(self.call("POST", "/v1/federated/updates/2", {"error": "no memory"}, "c2")[0], 200)
        self.assertEqual(self.call("GET", "/v1/federated/status")[1]["failed"], 1)
        said = {(line["event"], line.get("client")): line.get("reason", "") for line in self.ledger()}
        self.assertIn("more than", said["refused", "c1"])
        self.assertEqual(said["failed", "c2"], "no memory")
        self.assertTrue(any("not finite" in line.get("reason", "") for line in self.ledger()))
        self.assertIsNone(server.poll())

    def test_a_poll_waits_and_a_later_one_takes_its_place(self):
        self.server(self.run_file(self.names()))
        digest = self.join("c0")
        self.assertEqual(self.task(wait=0)[0], 204)
        first = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        first.request("GET", "/v1/federated/task?after=0&wait=60", headers={"authorization": f"Bearer {self.tokens['c0']}"})
        self.wait_until(lambda: self.task(wait=0)[0] == 204)
        self.assertEqual(first.getresponse().status, 204)
        first.close()
        second = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        second.request("GET", "/v1/federated/task?after=0&wait=60", headers={"authorization": f"Bearer {self.tokens['c0']}"})
        for client in CLIENTS:
            self.call("POST", "/v1/federated/join", {"base_digest": digest, "num_examples": 3}, client)
        self.assertEqual(json.loads(second.getresponse().read())["round"], 1)
        second.close()

    def test_vanished_clients_are_not_waited_for_beyond_the_deadline(self):
        run = self.run_file(self.names(quorum=2), rounds=1)
        # Made before the clock runs: what a client is given does not depend on who carries it.
        subprocess.run([BINARY, "federate", "round", run, "--state", self.dir / "by-files", "--out", self.dir / "outbox"], check=True, capture_output=True)
        updates = {client: self.train(self.dir / "outbox" / f"{client}.safetensors", client) for client in ("c0", "c1")}
        server = self.server(run, "--deadline", 5)
        self.join(*CLIENTS)
        for client, update in updates.items():
            self.assertEqual(self.call("PUT", "/v1/federated/updates/1", update, client)[0], 200)
        for client in CLIENTS:
            self.wait_until(lambda c=client: self.task(c, after=9, wait=5)[1] == {"done": True})
        self.end(server)
        self.assertIn({"event": "vanished", "client": "c2"}, [{key: line.get(key) for key in ("event", "client")} for line in self.ledger()])

    def test_without_a_quorum_the_run_ends_and_the_state_is_kept(self):
        run = self.run_file(self.names(quorum=2, retries=1), rounds=1)
        server = self.server(run, "--deadline", 0.5)
        self.join(*CLIENTS)
        self.end(server, 1)
        self.assertIn("no quorum of 2 in 2 attempts", self.log("server"))
        self.assertFalse((self.dir / "state/latest").exists())
        server = self.server(run)
        for process, client in [(self.client(client), client) for client in CLIENTS]:
            self.end(process, name=client)
        self.end(server)
        self.assertTrue((self.dir / "state/latest").exists())

    def test_a_client_that_cannot_train_says_so(self):
        server = self.server(self.run_file(self.names(quorum=2), rounds=1))
        failing = self.client("c0", preexec=full_disk)
        others = [(self.client(client), client) for client in ("c1", "c2")]
        self.end(failing, 1, "c0")
        for process, client in others:
            self.end(process, name=client)
        failed = [line for line in self.ledger() if line["event"] == "failed"]
        self.assertEqual([line["client"] for line in failed], ["c0"])
        self.assertIn("cannot", failed[0]["reason"])
        self.assertEqual(self.task("c0", wait=0)[1], {"done": True})
        self.end(server)

    def test_a_server_without_room_says_so_and_goes_on_when_there_is_some(self):
        simulated = self.simulate(rounds=1)
        run = self.run_file(self.names(), rounds=1)
        server = self.server(run, preexec=lambda: signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (8 << 10, 8 << 10))
        self.join(*CLIENTS)
        self.end(server, 1)
        self.assertIn("File too large", self.log("server"))
        server = self.server(run)
        for process, client in [(self.client(client), client) for client in CLIENTS]:
            self.end(process, name=client)
        self.end(server)
        self.assertEqual(self.adapter(), (simulated / "latest/adapter_model.safetensors").read_bytes())

    def test_with_tls(self):
        cert, key = self.dir / "cert.pem", self.dir / "key.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
                        "-keyout", key, "-out", cert], check=True, capture_output=True)
        server = self.server(self.run_file(self.names(), rounds=1), "--tls-cert", cert, "--tls-key", key)
        self.end(self.client("c0", "--patience", 0, scheme="https"), 1, "c0")
        for process, client in [(self.client(client, "--server-ca", cert, scheme="https"), client) for client in CLIENTS]:
            self.end(process, name=client)
        self.end(server)
        self.assertTrue((self.dir / "state/latest").exists())

    def test_refusals_name_what_to_change(self):
        run = self.run_file(self.names())
        for args, word in ((("server", run, "--state", self.dir / "x", "--keys", self.dir / "none"), "lorikeet keys create"),
                           (("server", run, "--state", self.dir / "x", "--keys", self.keys, "--wait-for", 4), "there are 3"),
                           (("client", "--data", "d", "--base", MODEL), "--server"),
                           (("client", "--server", "http://127.0.0.1:1", "--data", "d", "--base", MODEL, "--state", "s"), "--key-file"),
                           (("client", "--round", "r", "--data", "d", "--base", MODEL), "--out")):
            done = subprocess.run([BINARY, "federate", *map(str, args)], capture_output=True, text=True, timeout=PATIENCE, check=False)
            self.assertEqual(done.returncode, 1, args)
            self.assertIn(word, done.stderr)
        self.end(self.client("c0", "--patience", 0), 1, "c0")


if __name__ == "__main__":
    unittest.main()
