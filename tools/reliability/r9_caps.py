#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""R9: every input has a cap. For each: what lies at the limit passes, one more is refused with 4xx, and the server lives. Prints the table."""
import asyncio
import contextlib
import json
import socket

from common import Connection, DEMO, Server, arguments, run

MODEL = "sql"


def completion(**fields) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "x", "max_tokens": 1, **fields}).encode()


def chat(**fields) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **fields}).encode()


def tools(count: int) -> list:
    return [{"type": "function", "function": {"name": f"f{index}", "parameters": {"type": "object"}}} for index in range(count)]


def nested(depth: int) -> bytes:
    inner = "1"
    for _ in range(depth - 1):  # the object itself is one level
        inner = f"[{inner}]"
    return f'{{"model": "{MODEL}", "prompt": "x", "max_tokens": 1, "metadata": {inner}}}'.encode()


def schema(size: int) -> dict:
    text = {"type": "object", "description": ""}
    text["description"] = "d" * (size - len(json.dumps(text, separators=(",", ":"))))
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": text}}


def padded(size: int) -> bytes:
    body = completion()
    return body + b" " * (size - len(body))


# name, path, body at the limit, body beyond it, statuses that refuse
CASES = [
    ("JSON depth 64", "/v1/completions", nested(64), nested(65), (400,)),
    ("body 8 MiB", "/v1/completions", padded(8 << 20), padded((8 << 20) + 1), (413,)),
    ("n 16", "/v1/completions", completion(n=16), completion(n=17), (400,)),
    ("best_of 16", "/v1/completions", completion(best_of=1), completion(best_of=17), (400,)),
    ("stop strings 16", "/v1/completions", completion(stop=[f"s{i}" for i in range(16)]), completion(stop=[f"s{i}" for i in range(17)]), (400,)),
    ("stop string 256 bytes", "/v1/completions", completion(stop="s" * 256), completion(stop="s" * 257), (400,)),
    ("logit_bias 1024 entries", "/v1/completions", completion(logit_bias={str(i): 1 for i in range(1024)}), completion(logit_bias={str(i): 1 for i in range(1025)}), (400,)),
    ("logit_bias in [-100, 100]", "/v1/completions", completion(logit_bias={"5": 100}), completion(logit_bias={"5": 100.5}), (400,)),
    ("top_logprobs 20", "/v1/chat/completions", chat(logprobs=True, top_logprobs=20), chat(logprobs=True, top_logprobs=21), (400,)),
    ("logprobs 20", "/v1/completions", completion(logprobs=20), completion(logprobs=21), (400,)),
    ("tools 128", "/v1/chat/completions", chat(tools=tools(128), tool_choice="none"), chat(tools=tools(129), tool_choice="none"), (400,)),
    ("schema 64 KiB", "/v1/chat/completions", chat(response_format=schema(64 << 10)), chat(response_format=schema((64 << 10) + 64)), (400, 413)),
    ("guided_regex 64 KiB", "/v1/completions", completion(guided_regex="a" * 1000), completion(guided_regex="a" * ((64 << 10) + 1)), (400, 413)),
    ("prompt within the context of 512", "/v1/completions", completion(prompt=[5] * 511), completion(prompt=[5] * 512), (400,)),
    ("token ids below the vocabulary", "/v1/completions", completion(prompt=[1535]), completion(prompt=[1536]), (400,)),
    ("token ids not negative", "/v1/completions", completion(prompt=[0]), completion(prompt=[-1]), (400,)),
    ("temperature not negative", "/v1/completions", completion(temperature=0), completion(temperature=-0.01), (400,)),
    ("top_p at most 1", "/v1/completions", completion(top_p=1), completion(top_p=1.01), (400,)),
    ("penalties in [-2, 2]", "/v1/completions", completion(presence_penalty=2), completion(presence_penalty=2.1), (400,)),
    ("NaN", "/v1/completions", completion(), completion().replace(b'"max_tokens": 1', b'"temperature": NaN'), (400,)),
    ("infinite", "/v1/completions", completion(temperature=1.5), completion().replace(b'"max_tokens": 1', b'"temperature": 1e999'), (400,)),
    ("max_tokens an integer", "/v1/completions", completion(), completion().replace(b'"max_tokens": 1', b'"max_tokens": 1e19'), (400,)),
    ("messages not empty", "/v1/chat/completions", chat(), chat(messages=[]), (400,)),
    ("known model", "/v1/completions", completion(), completion(model="nobody"), (404,)),
    ("composition of 8 adapters", "/v1/completions", completion(model="+".join(["sql*0.1"] * 8)), completion(model="+".join(["sql*0.1"] * 9)), (400,)),
    ("weights within 100", "/v1/completions", completion(model="sql*100"), completion(model="sql*101"), (400,)),
    ("valid UTF-8", "/v1/completions", completion(prompt="é"), completion().replace(b'"x"', b'"\xff\xfe"'), (400,)),
    ("content type", "/v1/completions", completion(), ("content-type", "text/plain"), (415,)),
    ("header 16 KiB", "/v1/completions", ("x-padding", "p" * (15 << 10)), ("x-padding", "p" * (16 << 10)), (400, 413, 431)),
    ("timeout header", "/v1/completions", ("x-request-timeout", "86400"), ("x-request-timeout", "86401"), (400,)),
]


def ask_blocking(server, path: str, body) -> int:
    headers = {}
    if isinstance(body, tuple):
        headers, body = {body[0]: body[1]}, completion()
    raw = Connection.encode("POST", path, body, headers={name: value for name, value in headers.items() if name != "content-type"})
    if "content-type" in headers:
        raw = raw.replace(b"application/json", headers["content-type"].encode())
    with socket.create_connection((server.host, server.port), timeout=120) as connection:
        with contextlib.suppress(ConnectionError):  # refused before all was sent: the answer is there to be read
            connection.sendall(raw)
        head = b""
        while b"\r\n" not in head and (piece := connection.recv(4096)):
            head += piece
    return int(head.split()[1]) if head else 0


async def ask(server, path: str, body) -> int:
    return await asyncio.to_thread(ask_blocking, server, path, body)


async def main(options, report) -> None:
    with Server(options.binary, "--lora-dir", str(DEMO / "adapters"), "--memory", "64MiB", "--log-level", "error") as server:
        passed, wrong = 0, []
        rows = []
        for name, path, inside, beyond, refusals in CASES:
            at_limit, over = await ask(server, path, inside), await ask(server, path, beyond)
            ok = at_limit == 200 and over in refusals
            rows.append(f"| {name} | {at_limit} | {over} |{'' if ok else ' **wrong**'}")
            passed += ok
            if not ok:
                wrong.append(f"{name}: {at_limit}, {over}")
        if options.table:
            print("| cap | at the limit | one more |\n|---|---|---|\n" + "\n".join(rows))
        elif wrong:
            print(*wrong, sep="\n")
        status = await server.wait_idle()
        report.check("caps that hold", passed == len(CASES), f"{passed} of {len(CASES)}", wrong)
        report.check("server afterwards", status["pool"]["kv"] == 0 and server.process.poll() is None, "alive, pages back")
        openapi = json.dumps((await server.call("GET", "/openapi.json")).json())
        report.check("caps in /openapi.json", all(word in openapi for word in ('"maximum": 16', '"maxItems": 16', '"maximum": 20', '"maxItems": 128')), "n, stop, logprobs, tools")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--table", action="store_true", help="print each cap")
    run("R9 input caps", parser.parse_args(), main)
