#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Three replicas and a router on this machine; one replica is killed in the middle of an answer, and the answer goes on.
With etcd (apt-get install etcd-server) they find each other there, and an adapter that one publishes is served by all.
Usage: fleet.py LORIKEET DIRECTORY (for logs). Standard library only."""
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
QUESTION = {"model": "sql", "stream": True, "seed": 5, "temperature": 1.2, "max_tokens": 400, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Which customers live in Riga?"}]}


def start(log: pathlib.Path, pattern: str, *command: str):
    """The process, and what the pattern found in its log."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return process, found[1]
        time.sleep(0.05)
    process.kill()
    sys.exit(f"it did not start:\n{log.read_text(errors='replace')[-2000:]}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_etcd(directory: pathlib.Path):
    """The process and its address; nothing where it is not installed."""
    program = shutil.which("etcd")
    if not program:
        print("==> etcd is not installed (apt-get install etcd-server): the router is told its replicas instead")
        return None, None
    client, peer = f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    shutil.rmtree(directory / "etcd", ignore_errors=True)
    process, _ = start(directory / "etcd.log", r"(ready to serve client requests|serving insecure client requests)", program, "--name", "demo",
                       "--data-dir", str(directory / "etcd"), "--listen-client-urls", f"http://{client}", "--advertise-client-urls", f"http://{client}",
                       "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"demo={peer}")
    return process, client


def status(router: str) -> dict:
    connection = http.client.HTTPConnection(router, timeout=60)
    connection.request("GET", "/v1/fleet/status")
    return json.loads(connection.getresponse().read())


def ask(router: str, at: int = 0, then=lambda: None):
    """The text, event by event, and the longest pause between two; `then()` is called in mid-answer."""
    connection = http.client.HTTPConnection(router, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(QUESTION), {"Content-Type": "application/json"})
    response = connection.getresponse()
    pieces, pause, last, number = [], 0.0, time.monotonic(), 0
    while line := response.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            sys.exit(f"the answer broke: {event}")
        pieces.append(event["choices"][0]["delta"].get("content", ""))
        pause, last, number = max(pause, time.monotonic() - last), time.monotonic(), number + 1
        if number == at:
            then()
            last = time.monotonic()
    return pieces, pause


def publish(router: str):
    """One replica makes a new adapter of a directory; the others fetch it when they are asked for it."""
    begin = time.monotonic()
    call(router, "POST", "/v1/adapters", {"name": "published", "path": str(HERE / "adapters" / "tag")})
    urls = [replica["url"].removeprefix("http://") for replica in status(router)["replicas"]]
    question = {"model": "published", "temperature": 0, "max_tokens": 8, "messages": [{"role": "user", "content": "Which customers live in Riga?"}]}
    texts = set()
    for url in urls:
        while True:  # the news of it takes a moment
            found, answer = call(url, "POST", "/v1/chat/completions", question, (200, 404))
            if found == 200:
                break
            time.sleep(0.01)
        texts.add(answer["choices"][0]["message"]["content"])
    print(f"==> an adapter was published and answered by all {len(urls)} within {time.monotonic() - begin:.1f} s{'' if len(texts) == 1 else ', DIFFERENTLY'}")


def call(address: str, method: str, path: str, body: dict, expected=(200, 201)):
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status not in expected:
        sys.exit(f"{method} {path}: {response.status} {answer}")
    return response.status, answer


def main():
    binary, directory = os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    processes = []
    try:
        replicas = {}
        etcd, address = start_etcd(directory)
        fleet = f"etcd://{address}/demo"
        if etcd:
            processes.append(etcd)
        for i in range(3):
            own = directory / f"replica{i}"
            shutil.rmtree(own, ignore_errors=True)
            member = ("--fleet", fleet, "--fleet-dir", str(own), "--lora-root", str(HERE / "adapters")) if etcd else ()
            process, url = start(directory / f"replica{i}.log", r" on (http://127\.0\.0\.1:\d+)\n", binary, "serve", str(HERE / "model"), "--served-model-name", "demo",
                                 "--lora-dir", str(HERE / "adapters"), "--memory", "128MiB", "--threads", "1", "--no-state", "--port", "0", "--drain-grace", "0", *member)
            processes.append(process)
            replicas[url] = process
        process, router = start(directory / "router.log", r"policy \w+, http://(\S+)\n", binary, "route", "--port", "0",
                                *(("--fleet", fleet) if etcd else (word for url in replicas for word in ("--replica", url))))
        processes.append(process)
        while sum(replica["state"] == "ready" for replica in status(router)["replicas"]) < 3:
            time.sleep(0.05)
        print(f"==> a router at http://{router} in front of {', '.join(replicas)}")
        if etcd:
            publish(router)
        quiet, _ = ask(router)
        print(f"==> an answer of {len(quiet)} events, undisturbed")
        for name, number in (("killed (kill -9)", signal.SIGKILL), ("stopped (SIGSTOP)", signal.SIGSTOP)):
            def fault(number=number):
                url = next(replica["url"] for replica in status(router)["replicas"] if replica["routed"])
                replicas[url].send_signal(number)
                print(f"    {url} is {name} after 60 events")
            pieces, pause = ask(router, 60, fault)
            print(f"    the answer went on after {pause * 1e3:.0f} ms; it is {'the same' if pieces == quiet else 'ANOTHER ONE'}, {len(''.join(pieces))} characters")
            if pieces != quiet:
                sys.exit("the answer changed")
        shown = status(router)
        print(f"==> the router continued {shown['continued']} answer, hedged {shown['hedged']}, lost {shown['broken']}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


if __name__ == "__main__":
    main()
