"""A real HTTP server on loopback that can misbehave as real ones do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What one path answers. ``cuts`` are the byte counts after which the next answers break off."""

    body: bytes
    status: int = 200
    kind: str = "application/octet-stream"
    ranges: bool = True
    etag: str | None = None
    modified: str | None = None
    length: bool = True
    head: bool = True  # whether it answers HEAD
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)  # statuses of the next answers
    headers: dict[str, str] = field(default_factory=dict)
    gate: threading.Event | None = None  # nothing after the first block until it is set

    def change(self, body: bytes) -> None:
        self.body = body
        if self.etag is not None:
            self.etag = tag(body)


@dataclass
class Site:
    """The server: its pages, and what it was asked."""

    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of every GET
    heads: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)  # bytes of bodies, by path
    vias: list[str] = field(default_factory=list)  # absolute addresses, asked as of a proxy

    def put(self, path: str, body: bytes, **how: object) -> str:
        """Serve a file, and return its address."""
        how.setdefault("etag", tag(body))
        self.pages[path] = Page(body, **how)  # type: ignore[arg-type]
        return f"{self.address}{path}"

    def asked_for(self, path: str) -> list[str | None]:
        return [ranges for name, ranges in self.asked if name == path]


def tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:16]}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        page = self.site.pages.get(self.path)
        if page is None or not page.head:
            self._answer(405, Page(b""), b"", {})
        else:
            self.site.heads.append(self.path)
            self._answer(page.status, page, page.body, {})

    def do_GET(self) -> None:
        path = self.path
        if path.startswith("http://"):  # we are its proxy
            self.site.vias.append(path)
            path = "/" + path.split("/", 3)[3]
        wanted = self.headers.get("Range")
        self.site.asked.append((path, wanted))
        page = self.site.pages.get(path)
        if page is None:
            self._answer(404, Page(b"<html><title>Not here</title></html>", kind="text/html"), b"", {})
            return
        if page.failures:
            self._answer(page.failures.pop(0), page, b"busy", {})
            return
        status, body, more = page.status, page.body, {}
        condition = self.headers.get("If-Range")
        if wanted and page.ranges and condition in {None, page.etag, page.modified}:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(body):
                self._answer(416, page, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            status, more = 206, {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            body = body[start:]
        self._answer(status, page, body, more)

    def _answer(self, status: int, page: Page, body: bytes, more: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", page.kind)
        if page.length or status not in {200, 206}:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        if page.etag and status in {200, 206, 416}:
            self.send_header("ETag", page.etag)
        if page.modified:
            self.send_header("Last-Modified", page.modified)
        for name, value in {**page.headers, **more}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = page.cuts.pop(0) if page.cuts and status in {200, 206} else None
        if cut is not None:
            body, self.close_connection = body[:cut], True
        try:
            for start in range(0, len(body), 4096):
                # Counted first: a client that has the last block may look at once.
                self.site.sent[self.path] = self.site.sent.get(self.path, 0) + len(body[start : start + 4096])
                self.wfile.write(body[start : start + 4096])
                if page.gate and start == 0:
                    page.gate.wait(30)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def handle(self) -> None:
        with suppress(ConnectionResetError):  # a client that was killed, or had heard enough
            super().handle()

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Site]:
    """A site on a free port of loopback."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    handler.site = site = Site(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
