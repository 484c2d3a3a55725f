"""300 servers that answer as no server should: no traceback, no hang, never a file of mixed bytes."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Event

import httpx2 as httpx
import pytest

from refiner_cli.data.download import mirrors
from refiner_cli.data.download.catalog import Source
from refiner_cli.data.download.content import open_archive
from refiner_cli.data.download.http import client, probe
from refiner_cli.data.download.mirrors import RetryPolicy, fetch
from refiner_cli.data.download.patience import Pace
from refiner_cli.errors import FetchError
from tests.data.conftest import Log
from tests.data.download.raw_server import answering, response
from tests.data.limits import memory_limit

CASES = 300
STATUSES = [*["200 OK", "206 Partial Content"] * 6, "416 No", "404 Not Found", "503 Busy", "429", "302 Found",
            "301 Moved", "304 Not Modified", "204 None", "500 Oh", "999 What", "100 Continue"]  # fmt: skip
DIGITS = ["-1", "x", "\xb2", "9" * 5000, "0", "1e3", "", "+5", "1, 2"]
DATES = ["Tue, 01 Sep 2026 10:00:00 GMT", "yesterday",
         "Tue, 99 Foo 99999999999 10:00:00 GMT", "-1", "\xb2", "soon",
         "9" * 400]  # fmt: skip
PLACES = [
    "/data.zip",
    "http://[::1",
    "ftp://x/y",
    "//",
    "http://no.such.host.invalid/",
    "\xff\xfe",
    "http://:0/",
    "",
]
KINDS = ["application/zip", "text/html", "multipart/byteranges; boundary=x", "\xff", ""]
MALFORMED = [b"", b"\r\n\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\x16\x03\x01\x00",
             b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: " + b"a" * 200_000,
             b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", b"<html>hello</html>"]  # fmt: skip


def archive(seed: int) -> bytes:
    """About 50 kB; of the same length for every seed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for number in range(5):
            content = random.Random(seed + number).randbytes(10_000)
            file.writestr(zipfile.ZipInfo(f"{number}.jpg"), content)
    return stream.getvalue()


FILES = [archive(0), archive(100)]


def answer(chance: random.Random, headers: dict[str, str]) -> Iterable[bytes]:
    if chance.random() < 0.1:
        return [chance.choice(MALFORMED)]
    file = FILES[chance.random() < 0.2]
    start = int(headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    status = chance.choice(STATUSES)
    if status.startswith("200"):
        start = 0
    if chance.random() < 0.1:
        start = max(0, start + chance.choice([-1, 1, 1000]))  # the wrong bytes
    end = chance.choice([len(file)] * 3 + [min(len(file), start + chance.randint(0, 40_000))] * 2)
    body = file[start:end]
    if chance.random() < 0.2:
        page = b"<html>no</html>"
        body = chance.choice([b"", body[:-7], body + b"more", page, chance.randbytes(3000), body * 2])
    sent = [("Content-Type", chance.choice(KINDS)), ("Retry-After", chance.choice(DATES))]
    if status.startswith("30"):
        sent.append(("Location", chance.choice(PLACES)))
    sent += content_range(chance, start, end, len(file)) + identity(chance, file)
    more, body = framing(chance, body)
    return response(status, sent + more, body)


def content_range(chance: random.Random, start: int, end: int, total: int) -> list[tuple[str, str]]:
    odd = f"bytes {chance.choice(DIGITS)}-{end}/{chance.choice(DIGITS)}"
    values = [f"bytes {start}-{end - 1}/{total}"] * 4 + [f"bytes {start}-{end - 1}/*", odd, ""]
    return [("Content-Range", value) for value in [chance.choice(values)] if value]


def identity(chance: random.Random, file: bytes) -> list[tuple[str, str]]:
    tags = [f'"{file is FILES[0]}"'] * 3 + ['"one"', 'W/"1"', "\xff", '"', ""]
    sent = [("ETag", tag) for tag in [chance.choice(tags)] if tag]
    if chance.random() < 0.5:
        sent.append(("Last-Modified", chance.choice(DATES)))
    if chance.random() < 0.1:
        sent.append(("Content-Encoding", chance.choice(["gzip", "br", "nonsense"])))
    return sent


def framing(chance: random.Random, body: bytes) -> tuple[list[tuple[str, str]], bytes]:
    """How the end of a body is told, and the body as it is sent."""
    if chance.random() < 0.15:
        end = chance.choice([b"0\r\n\r\n", b"", b"zz\r\n", b"-1\r\n"])
        return [("Transfer-Encoding", "chunked")], b"%x\r\n%s\r\n" % (len(body), body) + end
    odd = [str(len(body) - 5), str(len(body) + 5), str(1 << 40), chance.choice(DIGITS), ""]
    length = chance.choice([str(len(body))] * 10 + odd)
    return [("Content-Length", length)] if length else [], body


def accept(_: Source, path: Path, __: str) -> None:
    with open_archive(path) as opened:
        opened.check(Log(), Event())


@pytest.mark.parametrize("part", range(3))
def test_no_server_harms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(mirrors, "_LONGEST_WAIT", 0.0)
    fetched = failed = 0
    chance = random.Random()
    with answering(lambda _, headers: answer(chance, headers)) as url, memory_limit(1 << 30), client() as web:
        for seed in range(part, CASES, 3):
            chance.seed(seed)
            target = tmp_path / f"{seed}" / "data.zip"
            target.parent.mkdir()
            source = Source(file="data.zip", urls=(url,), holds="*")
            with suppress(httpx.ConnectError):
                probe(web, [url])
            try:
                fetch(web, source, target, home="http://home.page", accept=accept, report=Log(), stop=Event(),
                      policy=RetryPolicy(4, 0.0, Pace(10_000, 60)))  # fmt: skip
            except FetchError as error:
                failed += 1
                assert "\n" not in str(error), seed  # noqa: PT017 - either outcome is right
                assert not target.exists(), seed
            else:
                fetched += 1
                assert target.read_bytes().removesuffix(b"more") in FILES, seed  # a zip may end so
                assert [path.name for path in target.parent.iterdir()] == ["data.zip"], seed
    assert fetched > 5
    assert failed > 5
