#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R18: with one key in the state, nothing but health, version, the API's description and the console answers without a key, and every route
only with its scope; a tenant sees only its adapters; a revoked key stops within two seconds, without a signal; keys are stored hashed and logged nowhere; listening
beyond loopback without a key is refused; the admin routes leave the public port when they have their own."""
import asyncio
import os
import shutil
import subprocess
import tempfile
import time

from common import Closed, Connection, DEMO, Server, arguments, run

OPEN = ["/health", "/healthz", "/ping", "/ready", "/readyz", "/live", "/livez", "/version", "/openapi.json", "/"]
INFER = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"),
         ("GET", "/v1/models/sql")]
ADAPTERS = [("POST", "/v1/load_lora_adapter"), ("POST", "/v1/unload_lora_adapter"), ("GET", "/v1/adapters"), ("POST", "/v1/adapters"), ("GET", "/v1/adapters/sql"),
            ("PATCH", "/v1/adapters/sql"), ("DELETE", "/v1/adapters/nobody")]
METRICS = [("GET", "/v1/status"), ("GET", "/metrics")]
ADMIN = [("GET", "/v1/keys"), ("POST", "/v1/keys"), ("GET", "/v1/keys/nobody"), ("DELETE", "/v1/keys/nobody"), ("GET", "/v1/tenants"), ("POST", "/v1/tenants"),
         ("GET", "/v1/tenants/nobody"), ("PATCH", "/v1/tenants/nobody"), ("DELETE", "/v1/tenants/nobody")]
ANY = [("GET", "/v1/usage")]


async def main(options, report) -> None:
    directory = tempfile.mkdtemp(prefix="lorikeet-r18-")
    state = os.path.join(directory, "state.db")

    def keys(*flags: str) -> str:
        return subprocess.run([options.binary, "keys", *flags], capture_output=True, text=True, check=True).stdout.strip()

    try:
        secrets = {scope: keys("create", "--state", state, "--tenant", f"tenant-{scope}", "--scope", scope) for scope in ("infer", "adapters", "metrics", "admin")}
        keys("tenant", "set", "--state", state, "tenant-narrow", "--adapters", "sql")
        secrets["narrow"] = keys("create", "--state", state, "--tenant", "tenant-narrow", "--scope", "infer")
        wrong = []
        with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB", state=state) as server:
            async def status(method, path, key=None, body=None) -> int:
                return (await server.call(method, path, {} if method != "GET" and body is None else body, key=key)).status

            checked = 0
            for path in OPEN:
                checked += 1
                if (code := await status("GET", path)) != 200:
                    wrong.append(f"{path} without a key: {code}")
            for routes, allowed in ((INFER, {"infer", "admin"}), (ADAPTERS, {"adapters", "admin"}), (METRICS, {"metrics", "admin"}), (ADMIN, {"admin"}),
                                    (ANY, {"infer", "adapters", "metrics", "admin", "narrow"})):
                for method, path in routes:
                    for name, key in [("none", None), ("wrong", "lk-" + "A" * 57), ("half", secrets["admin"][:-1]), *secrets.items()]:
                        code = await status(method, path, key)
                        refused = code in (401, 403)
                        checked += 1
                        expected = name not in allowed and not (name == "narrow" and routes is INFER)
                        if refused != expected or (name in ("none", "wrong", "half") and code != 401):
                            wrong.append(f"{method} {path} with {name}: {code}")
            # A tenant's adapters.
            for model, expected in (("sql", 200), ("json", 404), ("base", 404), ("sql+json", 404), ("base:json", 404), ("json@1", 404)):
                checked += 1
                code = await status("POST", "/v1/completions", secrets["narrow"], {"model": model, "prompt": "x", "max_tokens": 1})
                if code != expected:
                    wrong.append(f"narrow tenant asks {model}: {code}")
            listed = [model["id"] for model in (await server.call("GET", "/v1/models", key=secrets["narrow"])).json()["data"]]
            if listed != ["sql"]:
                wrong.append(f"narrow tenant sees {listed}")
            # Revocation.
            before = await status("GET", "/v1/models", secrets["infer"])
            identifier = next(word for word in keys("list", "--state", state, "--json").replace('"', " ").replace(",", " ").split() if secrets["infer"].startswith("lk-" + word) and len(word) > 6)
            keys("revoke", "--state", state, identifier)
            begin = time.monotonic()
            while (after := await status("GET", "/v1/models", secrets["infer"])) != 401 and time.monotonic() - begin < 60:
                await asyncio.sleep(0.02)
            known_after = time.monotonic() - begin
            if (before, after) != (200, 401):
                wrong.append(f"revoked key: {before}, {after}")
            log = server.log_text()
            stored = b"".join(open(os.path.join(directory, name), "rb").read() for name in os.listdir(directory) if name.startswith("state.db"))
            for name, secret in secrets.items():
                tail = secret.split("-")[-1]
                if secret in log or tail in log or secret.encode() in stored or tail.encode() in stored:
                    wrong.append(f"the {name} key is written in clear")
        report.check("routes x keys, tenants, revocation, clear text", not wrong, f"{checked} answers, {len(wrong)} wrong", wrong)
        report.check("a key that another process revoked", known_after <= 2, f"refused after {known_after:.2f} s")

        refused = subprocess.run([options.binary, "serve", str(DEMO / "model"), "--host", "0.0.0.0", "--no-state", "--port", "0"], capture_output=True, text=True, timeout=60)
        report.check("0.0.0.0 without a key", refused.returncode == 1 and "insecure" in refused.stderr, "refused to start")

        socket_path = os.path.join(directory, "admin.sock")
        with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB", "--admin", f"unix:{socket_path}") as server:
            codes = [(await server.call(method, path, {} if method != "GET" else None)).status for method, path in [*ADAPTERS, *METRICS, *ADMIN]]
            reader, writer = await asyncio.open_unix_connection(socket_path)
            writer.write(b"GET /v1/adapters HTTP/1.1\r\nhost: localhost\r\n\r\n")
            first = await reader.readline()
            writer.close()
            mode = os.stat(socket_path).st_mode & 0o777
            report.check("admin socket", set(codes) == {404} and b" 200 " in first and mode == 0o600, f"public {sorted(set(codes))}, socket {first.split()[1].decode()}, mode {mode:o}")
        if wrong:
            print(*wrong, sep="\n")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    run("R18 authentication", arguments(__doc__).parse_args(), main)
