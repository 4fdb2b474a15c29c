"""A stand-in of the model hub: what huggingface_hub's client asks of it, answered from local folders."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def commit_of(revision: str) -> str:
    return hashlib.sha1(revision.encode()).hexdigest()


@dataclass
class Hub:
    """One model with its revisions.

    Attributes:
        model: its id.
        revisions: folders of branches; names that begin with v are tags.
        token: what it wants to be asked with.
        asked: (time, "METHOD path") of each request.
        on_weights: called before weights are sent.
    """

    model: str
    revisions: Mapping[str, Path]
    token: str
    asked: list[tuple[float, str]] = field(default_factory=list)
    on_weights: Callable[[], None] = lambda: None
    address: str = ""

    def downloads(self, revision: str) -> list[float]:
        """When the weights of a revision were asked for."""
        path = f"GET /{self.model}/resolve/{commit_of(revision)}/model.safetensors"
        return [when for when, request in self.asked if request == path]

    def answer(self, method: str, path: str, token: str | None) -> tuple[int, bytes, dict[str, str]]:
        path = path.split("?")[0]
        self.asked.append((time.time(), f"{method} {path}"))
        if token != f"Bearer {self.token}":
            return 401, b"", {"X-Error-Code": "RepoNotFound"}
        commits = {commit_of(name): folder for name, folder in self.revisions.items()}
        commits |= {name.replace("/", "%2F"): folder for name, folder in self.revisions.items()}
        if path == f"/api/models/{self.model}/refs":
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit_of(n)} for n in self.revisions]
            tags = [ref for ref in refs if ref["name"].startswith("v")]
            branches = [ref for ref in refs if ref not in tags]
            return 200, json.dumps({"branches": branches, "tags": tags, "converts": []}).encode(), {}
        for kind in ("revision", "tree", "resolve"):
            start = f"/{self.model}/resolve/" if kind == "resolve" else f"/api/models/{self.model}/{kind}/"
            if path.startswith(start):
                name, _, file = path.removeprefix(start).partition("/")
                if name not in commits:
                    return 404, b"", {"X-Error-Code": "RevisionNotFound"}
                commit = name if len(name) == 40 else commit_of(name)
                return self._answer_about(kind, commit, commits[name], file)
        return 404, b"", {"X-Error-Code": "RepoNotFound"}

    def _answer_about(self, kind: str, commit: str, folder: Path, file: str) -> tuple[int, bytes, dict[str, str]]:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if kind == "revision":
            siblings = [{"rfilename": path.name, "size": path.stat().st_size} for path in files]
            return 200, json.dumps({"id": self.model, "sha": commit, "siblings": siblings}).encode(), {}
        if kind == "tree":
            facts = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _sha(p)} for p in files]
            return 200, json.dumps(facts).encode(), {}
        if not (folder / file).is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        body = (folder / file).read_bytes()
        return 200, body, {"ETag": f'"{_sha(folder / file)}"', "X-Repo-Commit": commit}


def _sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub answers at `hub.address` inside the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.command == "GET" and self.path.endswith(".safetensors"):
                hub.on_weights()
            status, body, headers = hub.answer(self.command, self.path, self.headers.get("Authorization"))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _FolderHandler(BaseHTTPRequestHandler):
    """Answers from folders `owner/name`; `root`, `commit` and `requests` are set in a subclass."""

    root: Path
    commit: str
    requests: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        self.requests.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        repo, kind, rest = "/".join(parts[:2]), parts[2:3], parts[3:]
        if repo == "own/gated":
            self.answer(403, b"", X_Error_Code="GatedRepo")
        elif repo == "own/broken":
            self.answer(500, b"")
        elif not (self.root / repo).is_dir():
            self.answer(404, b"", X_Error_Code="RepoNotFound")
        elif rest and rest[0] not in ("main", self.commit):
            self.answer(404, b"", X_Error_Code="RevisionNotFound")
        elif kind == ["resolve"]:
            self.file(self.root / repo / "/".join(rest[1:]))
        else:
            self.listing(self.root / repo, repo, kind == ["tree"])

    do_HEAD = do_GET

    def file(self, file: Path) -> None:
        if file.is_file():
            self.answer(200, file.read_bytes(), ETag=f'"{file.name}"', X_Repo_Commit=self.commit)
        else:
            self.answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=self.commit)

    def listing(self, folder: Path, repo: str, tree: bool) -> None:
        files = [file for file in folder.iterdir() if file.is_file()]
        facts = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
        names = [{"rfilename": file.name} for file in files]
        answer = facts if tree else {"id": repo, "sha": self.commit, "siblings": names}
        self.answer(200, json.dumps(answer).encode(), Content_Type="application/json")


@contextmanager
def serving_folders(root: Path, commit: str) -> Iterator[tuple[str, list[str]]]:
    """Serve folders `owner/name` below root as models of one commit; gives the address and the list of requests.

    `own/gated` is refused, and `own/broken` fails.
    """
    requests: list[str] = []
    handler = type("Handler", (_FolderHandler,), {"root": root, "commit": commit, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
