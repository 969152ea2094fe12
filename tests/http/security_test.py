# SPDX-License-Identifier: Apache-2.0
"""Keys, scopes, tenants' limits and adapters, the admin listener, TLS, what the log may say."""
import contextlib
import os
import pathlib
import signal
import ssl
import stat
import subprocess
import unittest
import warnings

from harness import Directory, PATIENCE, ServerTest, trusting, wait_for

refused = ServerTest.refused


def make_certificate(cert: str, key: str) -> bool:
    """A self-signed pair for "localhost"; False without openssl."""
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                           "-keyout", key, "-out", cert], capture_output=True, timeout=PATIENCE, check=False)
    return made.returncode == 0


def answers(server) -> bool:
    with contextlib.suppress(ssl.SSLError):
        return server.get("/health").status == 200
    return False


class Keys(Directory):
    refused = refused

    def key(self, tenant: str, scope: str) -> str:
        return self.keys("create", "--tenant", tenant, "--scope", scope)

    def serve(self, *args: str, **kwargs):
        return self.start(*args, state=self.path("state.db"), **kwargs)

    def reload(self, server, word: str = "keys_reloaded"):
        before = len(server.events(word))
        server.signal(signal.SIGHUP)
        wait_for(lambda: len(server.events(word)) > before, word)

    def test_deny_by_default(self):
        key = self.key("acme", "infer")
        server = self.serve(adapters=("sql",))
        for method, path in (("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("POST", "/detokenize"),
                             ("GET", "/v1/models"), ("GET", "/v1/models/sql"), ("GET", "/v1/adapters"), ("POST", "/v1/adapters"), ("GET", "/v1/adapters/sql"),
                             ("PATCH", "/v1/adapters/sql"), ("DELETE", "/v1/adapters/sql"), ("POST", "/v1/load_lora_adapter"),
                             ("POST", "/v1/unload_lora_adapter"), ("GET", "/metrics"), ("GET", "/v1/status")):
            for given in (None, "x", "lk-", key[:-1], key + "x", key[:16] + "x" * 43, "lk-000000000000-" + key[16:], key.upper(), "\u00e9"):
                headers = {} if given is None else {"Authorization": f"Bearer {given}".encode("latin1")}
                answer = server.call(method, path, {} if method != "GET" else None, headers=headers)
                error = self.refused(answer, 401, code="invalid_api_key")
                self.assertEqual(answer.headers["www-authenticate"], "Bearer")
                self.assertNotIn(key[16:], str(error))
        for headers in ({"Authorization": key}, {"Authorization": f"Basic {key}"}, {"Authorization": "Bearer"}, {"Authorization": ""}):
            self.refused(server.get("/v1/models", headers=headers), 401)
        for path in ("/health", "/ready", "/live", "/version", "/openapi.json", "/ping", "/healthz", "/readyz", "/livez", "/"):
            self.assertEqual(server.get(path).status, 200, path)
        self.assertEqual(server.chat(key=key).status, 200)
        self.assertEqual(server.get("/v1/models", headers={"x-api-key": key}).status, 200)
        self.assertEqual(server.get("/v1/models", headers={"authorization": f"bearer {key}"}).status, 200)
        server.stop(0)
        for secret in (key, key[16:], key[16:30]):
            self.assertNotIn(secret, server.log)

    def test_scopes(self):
        infer, adapters, admin = self.key("acme", "infer"), self.key("acme", "adapters"), self.key("root", "admin")
        metrics = self.key("acme", "metrics")
        self.copy_adapter("dates", "root", "dates")
        server = self.serve("--lora-root", self.path("root"), adapters=("sql",))
        rows = (("GET", "/v1/models", None, "infer"), ("POST", "/tokenize", {"prompt": "x"}, "infer"), ("GET", "/v1/adapters", None, "adapters"),
                ("PATCH", "/v1/adapters/sql", {"alias": "z"}, "adapters"), ("DELETE", "/v1/adapters/z", None, "adapters"), ("GET", "/metrics", None, "metrics"),
                ("GET", "/v1/status", None, "metrics"), ("GET", "/v1/keys", None, "admin"))
        for method, path, body, scope in rows:
            for name, key in (("infer", infer), ("adapters", adapters), ("metrics", metrics)):
                if name != scope:
                    self.refused(server.call(method, path, body, key=key), 403, scope, code="insufficient_scope")
            self.assertEqual(server.call(method, path, body, key={"infer": infer, "adapters": adapters, "metrics": metrics, "admin": admin}[scope]).status, 200, path)
        # Paths are for those who manage adapters.
        self.assertNotIn("/", [m for m in server.get("/v1/models", key=infer).json["data"] if m["id"] == "sql"][0]["root"])
        self.assertEqual(server.post("/v1/adapters", {"name": "d", "path": "dates"}, key=adapters).status, 201)
        self.assertEqual(server.post("/v1/load_lora_adapter", {"lora_name": "e", "lora_path": "dates"}, key=infer).status, 403)
        server.stop(0)

    def test_allow_list(self):
        self.keys("tenant", "set", "acme", "--adapters", "sql,da*")
        key, admin = self.key("acme", "infer,adapters"), self.key("root", "admin")
        server = self.serve()
        self.assertEqual([m["id"] for m in server.get("/v1/models", key=key).json["data"]], ["dates", "sql"])
        self.assertEqual([a["name"] for a in server.get("/v1/adapters", key=key).json["data"]], ["dates", "sql"])
        for model in ("sql", "dates@1", "base:sql", "sql*0.5+dates*0.5"):
            self.assertEqual(server.chat(model=model, key=key, max_tokens=1).status, 200, model)
        words = {}
        for model in ("base", "model", "", "tag", "tag@1", "base:tag", "sql*0.5+tag*0.5", "nothing"):
            words[model] = self.refused(server.chat(model=model, key=key), 404, code="model_not_found")["message"]
            self.refused(server.post("/v1/embeddings", {"model": model, "input": "x"}, key=key), 404)
        self.assertEqual(words["tag"].replace("tag", "?"), words["nothing"].replace("nothing", "?"))
        self.assertEqual(server.post("/v1/completions", {"prompt": "x"}, key=key).status, 404)  # no model: the base
        for method, path in (("GET", "tag"), ("PATCH", "tag"), ("DELETE", "tag"), ("GET", "tag@1"), ("DELETE", "tag@1")):
            self.assertEqual(server.call(method, f"/v1/adapters/{path}", {"pinned": True} if method == "PATCH" else None, key=key).status, 404)
        self.assertEqual(server.post("/v1/unload_lora_adapter", {"lora_name": "tag"}, key=key).status, 404)
        self.assertEqual(server.get("/v1/models/tag", key=key).status, 404)
        self.assertEqual(server.chat("x", "tag", key=admin, max_tokens=1).status, 200)
        server.stop(0)

    def test_limits(self):
        self.keys("tenant", "set", "acme", "--max-in-flight", "16")
        self.keys("tenant", "set", "poor", "--tokens-per-minute", "60")
        key, poor, free = self.key("acme", "infer"), self.key("poor", "infer"), self.key("free", "infer")
        server = self.serve("--max-running", "1", adapters=("sql",))
        # Its choices run one after the other: it is certainly still in flight when the next request comes.
        slow = {"model": "sql", "prompt": "x", "ignore_eos": True, "max_tokens": 500, "temperature": 0, "n": 16}
        with server.open_stream("/v1/completions", slow, key=key) as stream:
            stream.next()
            answer = server.chat(key=key)
            self.refused(answer, 429, code="rate_limit_exceeded")
            self.assertTrue(1 <= int(answer.headers["retry-after"]) <= 60)
            self.assertEqual(server.chat(key=free, max_tokens=1).status, 200)
        for left_by in ("a client that went away", "an answer that ended"):
            wait_for(lambda: server.chat(key=key, max_tokens=1).status == 200, "the place of " + left_by)
        self.assertEqual(server.chat(key=poor, max_tokens=100).status, 200)  # bigger than the bucket: taken, and then a debt
        answers = [server.chat(key=poor, max_tokens=50) for _ in range(2)]
        for answer in answers:
            self.refused(answer, 429, code="rate_limit_exceeded")
            self.assertTrue(1 <= int(answer.headers["retry-after"]) <= 60)
        self.keys("tenant", "set", "poor", "--tokens-per-minute", "0")
        wait_for(lambda: '"tenant_changed"' in server.log, "the new limit")
        self.assertEqual(server.chat(key=poor, max_tokens=50).status, 200)
        server.stop(0)

    def test_changes_of_another_process_hold_without_a_signal(self):
        key, other = self.key("acme", "infer"), self.key("acme", "infer")
        server = self.serve(adapters=("sql",))
        self.assertEqual(server.chat(key=key, max_tokens=1).status, 200)
        self.keys("revoke", key)
        late = self.key("late", "infer")
        wait_for(lambda: (server.chat(key=key, max_tokens=1).status, server.chat(key=late, max_tokens=1).status) == (401, 200), "both changes")
        self.keys("revoke", other)
        self.keys("revoke", late)
        wait_for(lambda: server.chat(key=late, max_tokens=1).status == 401, "the last key's revocation")
        self.assertEqual(server.chat(max_tokens=1).status, 401)  # no usable key left: still closed
        self.reload(server)  # a signal does it, too
        self.assertEqual(server.chat(max_tokens=1).status, 401)
        server.stop(0)

    def test_first_key_closes_a_running_server(self):
        server = self.serve(adapters=("sql",))
        self.assertEqual(server.chat(max_tokens=1).status, 200)
        key = self.key("acme", "infer")
        wait_for(lambda: server.chat(max_tokens=1).status == 401, "the first key")
        self.assertEqual(server.chat(key=key, max_tokens=1).status, 200)
        server.stop(0)

    def test_pages_of_other_origins_cannot_use_a_keyless_server(self):
        server = self.start(adapters=("sql",))
        body = {"model": "sql", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        own = server.address
        port = own.rsplit(":", 1)[1]
        for host, origin, status in ((own, f"http://{own}", 200), (own, "", 200), (own, "https://evil.example", 403), (own, "null", 403),
                                     (f"localhost:{port}", f"http://localhost:{port}", 200), (f"10.1.2.3:{port}", "", 200), ("[::1]", "", 200),
                                     (f"evil.example:{port}", f"http://evil.example:{port}", 403), (f"evil.example:{port}", "", 403), ("evil.example", "", 403),
                                     (f"127.evil.example:{port}", f"http://127.evil.example:{port}", 403)):
            headers = {"Host": host, **({"Origin": origin} if origin else {})}
            answer = server.call("POST", "/v1/chat/completions", body, headers=headers)
            self.assertEqual(answer.status, status, (host, origin))
            self.assertIn("x-request-id", answer.headers)
            self.assertNotIn("access-control-allow-origin", answer.headers)
        for path in ("/health", "/v1/models", "/metrics", "/"):  # a page whose name was pointed here reads nothing at all
            self.assertEqual(server.get(path, headers={"Host": f"evil.example:{port}"}).status, 403, path)
            self.assertEqual(server.get(path, headers={"Host": f"127.0.0.1:{port}"}).status, 200, path)
        self.refused(server.call("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}), 405)
        server.stop(0)
        key = self.key("acme", "infer")
        server = self.serve(adapters=("sql",))  # with keys the key is what counts
        self.assertEqual(server.chat(key=key, max_tokens=1, headers={"Host": "models.example"}).status, 200)
        server.stop(0)
        server = self.start("--insecure", adapters=("sql",))
        self.assertEqual(server.chat(max_tokens=1, headers={"Host": "models.example"}).status, 200)
        self.assertEqual(server.chat(max_tokens=1, headers={"Host": "models.example", "Origin": "https://evil.example"}).status, 403)

    def test_allowed_origins(self):
        app, key = "https://app.example", self.key("acme", "infer")
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
        for state in (None, self.path("state.db")):
            server = self.start("--allow-origin", app, "--allow-origin", "http://localhost:3000", adapters=("sql",), state=state)
            own_key = key if state else None
            first = server.call("OPTIONS", "/v1/chat/completions", headers={"Origin": app, **ask})
            self.assertEqual((first.status, first.body), (204, b""))  # without a key: browsers ask before they send it
            self.assertEqual(first.headers["access-control-allow-origin"], app)
            self.assertEqual(first.headers["access-control-allow-methods"], "POST")
            self.assertIn("x-stainless-os", first.headers["access-control-allow-headers"])
            for answer, status in ((server.chat(key=own_key, max_tokens=1, headers={"Origin": app}), 200),
                                   (server.chat(key=own_key, model="nothing", headers={"Origin": app}), 404),
                                   (server.chat(key="lk-wrong", headers={"Origin": app}), 401 if state else 200),
                                   (server.get("/nothing", headers={"Origin": app}), 404)):
                self.assertEqual(answer.status, status)
                self.assertEqual((answer.headers["access-control-allow-origin"], answer.headers["vary"]), (app, "Origin"))
                self.assertIn("x-request-id", answer.headers["access-control-expose-headers"])
            connection = server.connect()
            connection.request("POST", "/v1/completions", b'{"prompt": "x", "max_tokens": 2, "stream": true, "model": "sql"}',
                               {"Content-Type": "application/json", "Origin": app, **({"Authorization": f"Bearer {key}"} if state else {})})
            stream = connection.getresponse()
            self.assertEqual((stream.status, stream.getheader("access-control-allow-origin")), (200, app))
            connection.close()
            foreign = server.chat(key=own_key, max_tokens=1, headers={"Origin": "https://evil.example"})
            self.assertEqual(foreign.status, 200 if state else 403)
            self.assertNotIn("access-control-allow-origin", foreign.headers)
            self.refused(server.call("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://evil.example", **ask}), 405)
            self.refused(server.call("OPTIONS", "/nothing", headers={"Origin": app, **ask}), 404)
            server.stop(0)
        for origin in ("app.example", "https://app.example/", "null"):
            with self.assertRaisesRegex(RuntimeError, "--allow-origin"):
                self.start("--allow-origin", origin, adapters=())
        with self.assertRaisesRegex(RuntimeError, "every web page"):
            self.start("--allow-origin", "*", adapters=())

    def test_refuses_to_be_open_to_the_world(self):
        for args in (("--host", "0.0.0.0"), ("--host", "::"), ("--host", "192.0.2.1"), ("--host", "127.evil.example"),
                     ("--admin", "0.0.0.0:0"), ("--admin", "[::]:0"), ("--admin", "192.0.2.1:80"), ("--admin", "admin.example:80")):
            with self.assertRaisesRegex(RuntimeError, "without any API key"):
                self.start(*args, adapters=())
        self.key("acme", "infer")
        server = self.serve("--host", "0.0.0.0", adapters=("sql",))
        self.assertTrue(server.address.startswith("0.0.0.0:"))
        server.stop(0)
        server = self.serve("--admin", "0.0.0.0:0", adapters=("sql",))
        admin = server.event("ready")["admin"].replace("0.0.0.0", "127.0.0.1")
        self.assertEqual(server.get("/v1/status", address=admin).status, 401)
        server.stop(0)

    def test_prompts_and_keys_are_not_logged(self):
        key = self.key("acme", "admin")
        server = self.serve("--log-level", "debug", adapters=("sql",))
        secret = "Xyzzy-plugh"
        server.chat(secret, key=key)
        server.chat(secret, key=key, response_format={"type": secret})
        server.chat(secret, secret, key=key)
        server.complete(secret, key=key, unknown_field=secret)
        server.post("/v1/embeddings", {"input": secret, "dimensions": -1}, key=key)
        server.get(f"/v1/models/{secret}", key=key)
        server.get(f"/{secret}?{secret}", headers={"User-Agent": secret, "x-request-id": f"{secret}\u00e9".encode("latin1"), "Authorization": f"Bearer {key}"})
        server.post("/v1/chat/completions", b"{" + secret.encode(), key=key)
        server.chat("x", key=key, guided_regex=f"({secret}")
        server.stop(0)
        self.assertIn('"request"', server.log)
        self.assertNotIn(secret, server.log)
        self.assertNotIn(key[16:], server.log)
        self.assertIn(key[3:15], server.log)  # its public part


class Listeners(Directory):
    def test_admin_port(self):
        server = self.start("--admin", "127.0.0.1:0", adapters=("sql",))
        self.separate(server, server.event("ready")["admin"])

    def test_admin_socket(self):
        path = self.path("admin.sock")
        self.keys("create", "--tenant", "acme", "--scope", "infer")
        server = self.start("--admin", f"unix:{path}", adapters=("sql",), state=self.path("state.db"))
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(server.get("/v1/adapters", address=f"unix:{path}").status, 200)  # the file system says who may
        self.assertEqual(server.get("/v1/models").status, 401)
        server.stop(0)
        self.assertFalse(os.path.exists(path))

    def test_output_is_bounded_and_counted(self):
        server = self.start(adapters=("sql",))
        text = server.get("/metrics").text
        for name in ("lorikeet_output_bytes 0", "lorikeet_output_limit_bytes", 'lorikeet_cut_connections_total{reason="slow_reader"} 0',
                     "lorikeet_refused_outputs_total 0", "lorikeet_refused_connections_total 0", "lorikeet_io_turn_seconds_count",
                     'lorikeet_io_longest_turn_seconds{time="cpu"}'):
            self.assertIn(name, text)
        server.stop(0)

    def separate(self, server, admin):
        for path in ("/v1/adapters", "/v1/adapters/sql", "/metrics", "/v1/status"):
            self.assertEqual((server.get(path).status, server.get(path, address=admin).status), (404, 200), path)
            refused(self, server.get(path), 404, "--admin", code="admin_listener_only")
        # The console is on both; what it shows of the server is on the admin listener, and the other one says so.
        self.assertEqual((server.get("/").status, server.get("/", address=admin).status), (200, 200))
        self.assertIn(f"console  http://{admin}/", server.log)
        for path in ("/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            self.assertEqual(server.post(path, {}).status, 404, path)
        self.assertEqual(server.call("DELETE", "/v1/adapters/sql").status, 404)
        self.assertEqual(server.chat(max_tokens=1).status, 200)
        self.assertEqual((server.get("/ready").status, server.get("/health", address=admin).status), (200, 200))
        self.assertEqual(server.call("DELETE", "/v1/adapters/sql", address=admin).status, 200)
        self.assertEqual(server.chat(max_tokens=1).status, 404)
        server.stop(0)

    def test_unix_socket(self):
        path = self.path("s.sock")
        server = self.start("--unix-socket", path, adapters=("sql",))
        self.assertEqual(server.get("/v1/models", address=f"unix:{path}").status, 200)
        server.stop(0)

    def test_tls(self):
        cert, key = self.path("cert.pem"), self.path("key.pem")
        if not make_certificate(cert, key):
            self.skipTest("no openssl to make a certificate with")
        server = self.start("--tls-cert", cert, "--tls-key", key, adapters=("sql",), tls=trusting(cert))
        self.assertEqual(server.chat(max_tokens=1).status, 200)
        self.assertTrue(server.stream("/v1/completions", {"model": "sql", "prompt": "x", "max_tokens": 5}))
        with self.assertRaises(ssl.SSLError):
            server.tls = ssl.create_default_context()
            server.get("/health")
        old = trusting(cert)  # of a client that knows nothing newer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_1
        server.tls = old
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            server.get("/health")
        self.assertNotIn(b"200 OK", server.raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        server.tls = trusting(cert)
        self.assertEqual(server.get("/health").status, 200)
        # Renewed, read again by SIGHUP; what does not fit together changes nothing.
        make_certificate(cert, key)
        server.signal(signal.SIGHUP)
        server.tls = trusting(cert)
        wait_for(lambda: answers(server), "the new certificate")
        pathlib.Path(key).write_text("nonsense")
        server.signal(signal.SIGHUP)
        wait_for(lambda: server.event("certificate_not_reloaded"), "the refusal in the log")
        self.assertEqual(server.get("/health").status, 200)
        server.stop(0)
        for args in (("--tls-cert", cert), ("--tls-cert", cert, "--tls-key", self.path("nothing")), ("--tls-cert", key, "--tls-key", key)):
            with self.assertRaises(RuntimeError):
                self.start(*args, adapters=())


if __name__ == "__main__":
    unittest.main()
