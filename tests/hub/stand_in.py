# SPDX-License-Identifier: Apache-2.0
"""A stand-in of the Hugging Face hub: the part of its interface that downloads use, on two local ports, the hub's and its storage's.

Also what goes wrong there: answers cut off, wrong bytes, redirects to bad places, gates, renamed repositories. Every request is recorded.
Interface: https://huggingface.co/docs/hub/api and huggingface_hub's own client, which is tried against it (tools/conformance/hub_cache.py).
"""
import dataclasses
import hashlib
import http.server
import json
import ssl
import threading
import urllib.parse


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclasses.dataclass
class Request:
    port: int
    method: str
    path: str
    token: str
    range: str


@dataclasses.dataclass
class Repo:
    commits: dict  # commit -> {path: bytes}
    refs: dict  # branch -> commit
    large: tuple = (".safetensors",)  # kept in the storage, found by a redirect
    gated: bool = False
    private: bool = False
    renamed_to: str = ""
    # What goes wrong. Per path, a list of what becomes of its next GETs: an int (so many bytes, then the connection ends), "wrong", "endless", "no range", an HTTP
    # status, or a (status, headers) pair. When the list is at its end, all is well.
    faults: dict = dataclasses.field(default_factory=dict)
    head: dict = dataclasses.field(default_factory=dict)  # path -> headers in place of the right ones
    listed: list = dataclasses.field(default_factory=list)  # more names in the listing
    listing: bytes | None = None  # in its place
    listing_faults: list = dataclasses.field(default_factory=list)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that are killed, or have seen enough


class Hub:
    """with Hub() as hub: hub.url is HF_ENDPOINT."""

    def __init__(self, token: str = "hf_right", certificate: tuple = ()):
        """certificate: (its file, its key's), and the hub speaks HTTPS; its storage does not."""
        self.token = token
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.gate = threading.Event()  # held shut: bytes behind the first half of a file wait for it
        self.gate.set()
        self._servers = []
        self.ports = []
        for role in ("hub", "storage"):
            server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self, "role": role}))
            if certificate and role == "hub":
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*certificate)
                server.socket = context.wrap_socket(server.socket, server_side=True)
            self._servers.append(server)
            self.ports.append(server.server_address[1])
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self.ports[0]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.gate.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: dict, **more) -> str:
        """A repository with one commit on main, whose name is returned."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.repos[name] = Repo({commit: files}, {"main": commit}, **more)
        return commit

    def commit(self, name: str, files: dict, branch: str = "main") -> str:
        commit = hashlib.sha1(repr((name, branch, sorted(files.items()))).encode()).hexdigest()
        self.repos[name].commits[commit] = files
        self.repos[name].refs[branch] = commit
        return commit

    def gets(self, *, port: int | None = None, end: str = "") -> list:
        return [r for r in self.requests if r.method == "GET" and (port is None or r.port == port) and r.path.split("?")[0].endswith(end)]

    def of_files(self) -> list:
        return [r for r in self.requests if not r.path.startswith("/api/")]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    role: str

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _answer(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append(Request(self.server.server_address[1], self.command, self.path, token, self.headers.get("Range", "")))
        try:
            parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(self.path).path.split("/")[1:]]
            if self.role == "storage":
                self._storage(parts)
            else:
                self._hub(parts, token)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    # --- The hub

    def _hub(self, parts: list, token: str):
        api = parts[:2] == ["api", "models"]
        words = parts[2:] if api else parts
        verbs = ("revision", "tree") if api else ("resolve",)
        at = next((i for i, word in enumerate(words) if word in verbs), len(words))
        name = "/".join(words[:at])
        repo = self.hub.repos.get(name)
        if token and token != self.hub.token:
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if repo is None or (repo.private and not token):
            return self._fail(404 if token else 401, "RepoNotFound", "Repository not found" if token else "Invalid username or password.")
        if repo.renamed_to:
            target = self.path.replace(urllib.parse.quote(name), repo.renamed_to, 1)
            return self._send(307, {"Location": target}, b"")
        revision = words[at + 1] if at < len(words) else "main"
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self._api(name, repo, commit, tree=words[at : at + 1] == ["tree"])
        if repo.gated and token != self.hub.token:
            return self._fail(401, "GatedRepo", f"Access to model {name} is restricted. You must have access to it and be authenticated to access it. Please log in.")
        if repo.gated == "waiting":
            return self._fail(403, "GatedRepo", f"Access to model {name} is restricted and you are not in the authorized list.")
        path = "/".join(words[at + 2 :])
        files = repo.commits[commit]
        if path not in files and path not in repo.head:
            return self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        data = files.get(path, b"")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if path.endswith(repo.large):
            sha256 = hashlib.sha256(data).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(data)), "ETag": f'"{git_sha1(data)}"',
                        "Location": f"http://127.0.0.1:{self.hub.ports[1]}/{name}/{commit}/{path}?signature=1"}
            return self._send(302, headers | repo.head.get(path, {}), b"Found. Redirecting")
        self._file(repo, path, data, headers | {"ETag": f'"{git_sha1(data)}"'} | repo.head.get(path, {}))

    def _api(self, name: str, repo: Repo, commit: str, tree: bool):
        if repo.listing_faults:
            return self._send(*repo.listing_faults.pop(0), b"")
        if repo.listing is not None:
            return self._send(200, {"Content-Type": "application/json"}, repo.listing)
        files = repo.commits[commit]
        if tree:
            answer = [{"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
                      | ({"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}} if path.endswith(repo.large) else {})
                      for path, data in files.items()]
        else:
            answer = {"id": name, "modelId": name, "sha": commit, "private": repo.private, "gated": repo.gated, "tags": [], "downloads": 1, "likes": 0,
                      "siblings": [{"rfilename": path} for path in [*files, *repo.listed]]}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    # --- Bytes

    def _storage(self, parts: list):
        # As the real one, which takes a signature or a token, not both.
        if self.headers.get("Authorization"):
            return self._send(400, {}, b"Only one auth mechanism allowed")
        name, commit, path = "/".join(parts[:2]), parts[2], "/".join(parts[3:])
        repo = self.hub.repos[name]
        self._file(repo, path, repo.commits[commit][path], {"ETag": '"a-tag-of-the-storage"'})

    def _file(self, repo: Repo, path: str, data: bytes, headers: dict):
        if self.command == "HEAD":
            return self._send(200, {"Content-Length": str(len(data))} | headers, b"")
        faults = repo.faults.get(path, [])
        fault = faults.pop(0) if faults else None
        if isinstance(fault, tuple):
            return self._send(*fault, b"")
        if fault == "wrong":
            data = bytes(255 - byte for byte in data)
        begin = 0
        wanted = self.headers.get("Range", "")
        status = 200
        if wanted.startswith("bytes=") and fault != "no range":
            begin = int(wanted[6:].split("-")[0])
            if begin >= len(data):
                return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
            headers = headers | {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
            status = 206
        body = data[begin:]
        if fault == "endless":
            self._head(200, headers)  # without a length
            self.close_connection = True
            for _ in range(1 << 16):
                self.wfile.write(b"x" * 65536)
            return None
        if isinstance(fault, str) and fault.isdigit():
            return self._send(int(fault), {}, b"")
        self._head(status, headers | {"Content-Length": headers.get("Content-Length", str(len(body)))})
        if isinstance(fault, int):
            self.wfile.write(body[:fault])
            self.close_connection = True
            return None
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        self.hub.gate.wait()
        self.wfile.write(body[len(body) // 2 :])
        return None

    def _fail(self, status: int, code: str, message: str, more: dict | None = None):
        headers = {"X-Error-Message": message, "Content-Type": "application/json"} | ({"X-Error-Code": code} if code else {}) | (more or {})
        self._send(status, headers, json.dumps({"error": message}).encode())

    def _head(self, status: int, headers: dict):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, headers: dict, body: bytes):
        self._head(status, {"Content-Length": str(len(body))} | headers)
        if self.command != "HEAD":
            self.wfile.write(body)
