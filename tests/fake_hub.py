"""A Hugging Face hub on the loopback: the part of its HTTP interface that downloads ask for."""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import NamedTuple

TOKEN = "hf_right"  # opens gated repositories


class Repo(NamedTuple):
    """Files by path, at one commit, which every name in `refs` points to."""

    files: Mapping[str, bytes]
    gated: bool = False
    refs: tuple[str, ...] = ("main",)
    always: tuple[int, bytes] | None = None  # status and body of every answer, of a hub gone wrong

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class FakeHub(NamedTuple):
    """A running server; `requests` are (method, path) in the order they came."""

    url: str
    requests: list[tuple[str, str]]
    repos: dict[str, Repo]

    def files_asked_for(self) -> set[str]:
        paths = (path for _, path in self.requests if "/resolve/" in path)
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


@contextlib.contextmanager
def fake_hub(repos: Mapping[str, Repo]) -> Iterator[FakeHub]:
    """Serves the repositories (by `organisation/name`) from a thread until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_port}", [], dict(repos))
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def log_message(self, *_):
        pass

    def _answer(self):
        path = urllib.parse.urlsplit(self.path).path
        self.server.hub.requests.append((self.command, path))
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "cdn":
            return self._send(200, self._blob(parts[1]))
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        if len(parts) < 4:
            return self._send(404, b"")
        name, (kind, revision, *rest) = "/".join(parts[:2]), parts[2:]
        repo = self.server.hub.repos.get(name)
        if repo is None:  # as the hub answers whoever has no token
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if repo.always is not None:
            return self._send(*repo.always)
        if revision not in (*repo.refs, repo.sha):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if kind == "revision":
            siblings = [{"rfilename": file} for file in repo.files]
            return self._send_json({"id": name, "sha": repo.sha, "siblings": siblings})
        if kind == "tree":
            return self._send_json([_tree_entry(*item) for item in repo.files.items()])
        if repo.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        return self._send_file("/".join(rest), repo)

    def _send_file(self, file: str, repo: Repo):
        body = repo.files.get(file)
        headers = {"X-Repo-Commit": repo.sha}
        if body is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", **headers)
        if not file.endswith(".safetensors"):
            return self._send(200, body, ETag=f'"{_git_oid(body)}"', **headers)
        digest = hashlib.sha256(body).hexdigest()  # large files lie on another host
        return self._send(
            302,
            b"",
            Location=f"http://localhost:{self.server.server_port}/cdn/{digest}",
            **headers,
            **{"X-Linked-Size": str(len(body)), "X-Linked-ETag": f'"{digest}"'},
        )

    def _blob(self, digest: str) -> bytes:
        bodies = (body for repo in self.server.hub.repos.values() for body in repo.files.values())
        return next(body for body in bodies if hashlib.sha256(body).hexdigest() == digest)

    def _refuse(self, status: int, code: str, message: str, **headers: str):
        self._send(status, b"", **{"X-Error-Code": code, "X-Error-Message": message}, **headers)

    def _send_json(self, value):
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str):
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _tree_entry(path: str, body: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(body), "oid": _git_oid(body)}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(body).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(body), "pointerSize": 130}
    return entry


def _git_oid(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
