"""A stand-in of the hub of data sets: one commit of each folder `owner/name`, answered in ranges as the hub does."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

_REQUEST = re.compile(r"(?:api/)?datasets/([^/]+/[^/]+)(?:/(resolve|tree|revision|paths-info)/([^/]+)(?:/(.*))?)?")


class _Handler(BaseHTTPRequestHandler):
    """`root`, `commit` and `revisions` are set in a subclass."""

    root: Path
    commit: str
    revisions: tuple[str, ...]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "X_Repo_Commit": self.commit, "Content_Length": str(len(body))}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        request = _REQUEST.fullmatch(unquote(self.path.split("?")[0]).strip("/"))
        if request is None or not (self.root / request[1]).is_dir():
            self.answer(404, X_Error_Code="RepoNotFound")
            return
        repo, kind, revision, rest = request.groups()
        if revision and revision not in (*self.revisions, self.commit):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif kind == "resolve":
            self.file(self.root / repo / rest)
        elif kind == "tree":
            self.tree(self.root / repo, self.root / repo / (rest or ""))
        elif kind == "paths-info":
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
            self.json([self.entry(self.root / repo, path) for path in paths if (self.root / repo / path).exists()])
        else:
            files = [
                {"rfilename": str(p.relative_to(self.root / repo))} for p in sorted((self.root / repo).rglob("*.*"))
            ]
            self.json({"id": repo, "sha": self.commit, "siblings": files, "private": False, "tags": []})

    do_HEAD = do_POST = do_GET

    def entry(self, folder: Path, path: str) -> dict[str, Any]:
        if (folder / path).is_dir():
            return {"type": "directory", "path": path, "oid": "0"}
        return {"type": "file", "path": path, "size": (folder / path).stat().st_size, "oid": path}

    def tree(self, folder: Path, below: Path) -> None:
        if not below.is_dir():
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        found = below.rglob("*") if "recursive=true" in self.path.lower() else below.iterdir()
        self.json([self.entry(folder, str(path.relative_to(folder))) for path in sorted(found)])

    def file(self, file: Path) -> None:
        if not file.is_file():
            self.answer(404, X_Error_Code="EntryNotFound")
            return
        body = file.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self.answer(200, body, ETag=f'"{file.name}"')
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        self.answer(
            206, body[first : last + 1], ETag=f'"{file.name}"', Content_Range=f"bytes {first}-{last}/{len(body)}"
        )


@contextmanager
def serving_datasets(root: Path, commit: str, revisions: tuple[str, ...] = ("main",)) -> Iterator[str]:
    """Serve folders `owner/name` below root as data sets of one commit; gives the address."""
    handler = type("Handler", (_Handler,), {"root": root, "commit": commit, "revisions": revisions})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
