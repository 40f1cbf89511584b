"""A model hub on 127.0.0.1 for tests, with the faults real ones have.

    with HubServer() as hub:
        hub.add("someone/weights", "main", "net.pth", data)  # at /{repo}/resolve/{revision}/{path}, as on a hub
        hub.add_file("release.zip", data)  # /files/{name}, as a release page or a plain host serves
        hub.faults["net.pth"].cut = [1000]  # by the last part of the path

Every request is kept in `hub.requests`.
"""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Faults:
    """What goes wrong with one file; the lists are used up, one entry for each request.

    cut, reset: bytes of the body to send before the connection ends, tidily or with a TCP reset.
    status: answer with this status instead, to a HEAD or a GET alike. get_status: to a GET alone.
    bodies: serve these bytes instead, to a GET.
    ignore_range: answer 200 and everything to a request for a part.
    chunk_bytes, chunk_seconds: how slowly a body is sent.
    headers: sent instead of those of the same name, or besides.
    """

    cut: list[int] = field(default_factory=list)
    reset: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    get_status: list[int] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ignore_range: bool = False
    chunk_bytes: int = 1 << 20
    chunk_seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `range` and `token` are "" where the header is absent."""

    method: str
    path: str
    range: str
    token: str


class HubServer:
    """The server; a context manager. `url` is what HF_ENDPOINT is set to."""

    def __init__(self, *, redirect: bool = False) -> None:
        """redirect: send a GET on to another path of this server first, as hubs do for large files."""
        self.redirect = redirect
        self.files: dict[str, bytes] = {}
        self.faults: defaultdict[str, Faults] = defaultdict(Faults)
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_of = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def add(self, repo: str, revision: str, path: str, data: bytes) -> None:
        self.files[f"/{repo}/resolve/{revision}/{path}"] = data

    def add_file(self, name: str, data: bytes) -> str:
        self.files[f"/files/{name}"] = data
        return f"{self.url}/files/{name}"

    def gets(self, name: str) -> list[Request]:
        """The requests for a file's contents, the redirected ones left out."""
        return [
            request
            for request in self.requests
            if request.method == "GET" and request.path.endswith(name) and not request.path.startswith("/cdn/")
        ]

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def refuse(self, status: int, code: str = "") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def missing(self, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        known = [name for name in self.server_of.files if name.startswith(f"{repo}/resolve/")]
        if not known:
            return self.refuse(404, "RepoNotFound")
        revision = rest.partition("/")[0]
        if not any(name.startswith(f"{repo}/resolve/{revision}/") for name in known):
            return self.refuse(404, "RevisionNotFound")
        return self.refuse(404, "EntryNotFound")

    def answer(self, *, with_body: bool) -> None:
        hub = self.server_of
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range") or ""
        with hub.lock:
            hub.requests.append(Request(self.command, path, wanted, self.headers.get("Authorization") or ""))
            faults = hub.faults[path.rpartition("/")[2]]
            final = path.startswith("/cdn/")
            name = path.removeprefix("/cdn")
            data = hub.files.get(name)
            if data is None:
                return self.refuse(200) if path == "/" else self.missing(name)
            if faults.status:
                return self.refuse(faults.status.pop(0))
            if with_body and faults.get_status:
                return self.refuse(faults.get_status.pop(0))
            etag = hashlib.sha256(data).hexdigest()
            if with_body and faults.bodies and (final or not hub.redirect):
                data = faults.bodies.pop(0)
        if hub.redirect and not final:
            self.send_response(302)
            self.send_header("Location", f"{hub.url}/cdn{path}")
            self.hub_headers(etag, len(data), faults)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        start, end = 0, len(data)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        if part and not faults.ignore_range:
            start = int(part[1])
            end = min(int(part[2]) + 1, len(data)) if part[2] else len(data)
            if start >= len(data):
                return self.refuse(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.hub_headers(etag, len(data), faults)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        if with_body:
            self.send_body(data[start:end], faults)
        return None

    def hub_headers(self, etag: str, size: int, faults: Faults) -> None:
        usual = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(size)}
        for name, value in (usual | faults.headers).items():
            self.send_header(name, value)

    def send_body(self, body: bytes, faults: Faults) -> None:
        for ends, reset in ((faults.cut, False), (faults.reset, True)):
            if ends:
                self.wfile.write(body[: ends.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                if reset:
                    time.sleep(0.05)  # a reset that overtakes the bytes before it would hide them
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    # The handler's own files hold the socket open until they are closed.
                    self.rfile.close()
                    self.connection.close()
                else:
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
        try:
            for start in range(0, len(body), faults.chunk_bytes):
                self.wfile.write(body[start : start + faults.chunk_bytes])
                time.sleep(faults.chunk_seconds)
        except OSError:
            self.close_connection = True  # the client has gone, as a killed one does
