"""Servers that lie, stall or change their mind, one kind each; see also test_http_fuzz."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event

import httpx2 as httpx
import pytest

from refiner_cli.data.download import http
from refiner_cli.data.download.catalog import Source
from refiner_cli.data.download.content import open_archive
from refiner_cli.data.download.http import client, retry_after
from refiner_cli.data.download.mirrors import RetryPolicy, fetch
from refiner_cli.data.download.partial_download import PartialDownload
from refiner_cli.data.download.patience import Pace
from refiner_cli.errors import ConfigError, EnvironmentLacksError, FetchError
from tests.data.conftest import Log
from tests.data.download.raw_server import Answer, answering, response
from tests.data.download.server import Site
from tests.data.download.test_http_fuzz import FILES

ONE, OTHER = FILES  # two archives of one length
HALF = len(ONE) // 2
Bring = Callable[..., Path]


@pytest.fixture
def bring(tmp_path: Path, log: Log, stop: Event) -> Bring:
    """Fetch the given addresses, with the check of content that a download makes; returns the target."""

    def accept(_: Source, path: Path, __: str) -> None:
        with open_archive(path) as archive:
            archive.check(log, stop)

    def run(*urls: str, attempts: int = 3, pace: Pace | None = None) -> Path:
        target = tmp_path / "data.zip"
        policy = RetryPolicy(attempts, 0.0, pace or Pace(100, 60))
        with client() as web:
            source = Source(file=target.name, urls=urls, holds="*")
            fetch(
                web, source, target, home="http://home", accept=accept, report=log, stop=stop, policy=policy
            )
        return target

    return run


def first_half(*headers: tuple[str, str]) -> list[bytes]:
    """A response that breaks off in the middle."""
    return response("200 OK", [("Content-Length", str(len(ONE))), *headers], ONE[:HALF])


def rest(content: bytes, *headers: tuple[str, str], start: int = HALF) -> list[bytes]:
    ranges = f"bytes {start}-{len(content) - 1}/{len(content)}"
    sent = [("Content-Range", ranges), ("Content-Length", str(len(content) - start)), *headers]
    return response("206 Partial Content", sent, content[start:])


def whole(content: bytes) -> list[bytes]:
    return response("200 OK", [("Content-Length", str(len(content)))], content)


def in_turn(*answers: Iterable[bytes]) -> tuple[Answer, list[dict[str, str]]]:
    """A server that gives these answers, and the headers of the requests it got."""
    left, asked = iter(answers), []

    def answer(_: str, headers: dict[str, str]) -> Iterable[bytes]:
        asked.append(headers)
        return next(left)

    return answer, asked


TAG = ("ETag", '"one"')
DATE = ("Last-Modified", "Tue, 01 Sep 2026 10:00:00 GMT")
LATER = ("Last-Modified", "Wed, 02 Sep 2026 10:00:00 GMT")


@pytest.mark.parametrize(
    "identity", [(), (("ETag", 'W/"one"'),), (("Last-Modified", "yesterday"),), (("ETag", "\xff"),)]
)
def test_without_a_proof_of_identity_nothing_is_resumed(
    bring: Bring, identity: tuple[tuple[str, str], ...]
) -> None:
    """The server has another file of the same length meanwhile, and nobody could tell."""
    answer, asked = in_turn(first_half(*identity), whole(OTHER))
    with answering(answer) as url:
        assert bring(url).read_bytes() == OTHER
    assert "range" not in asked[1]


@pytest.mark.parametrize("now", [(), (("ETag", '"two"'),), (DATE,), (("ETag", 'W/"one"'),)])
def test_a_rest_that_does_not_say_to_belong_to_the_file_is_not_taken(
    bring: Bring, now: tuple[tuple[str, str], ...]
) -> None:
    answer, asked = in_turn(first_half(TAG), rest(OTHER, *now), whole(OTHER))
    with answering(answer) as url:
        assert bring(url).read_bytes() == OTHER
    assert [request.get("range") for request in asked] == [None, f"bytes={HALF}-", None]
    assert asked[1]["if-range"] == '"one"'


@pytest.mark.parametrize("identity", [TAG, DATE])
def test_a_rest_that_belongs_to_the_file_is_taken(bring: Bring, identity: tuple[str, str]) -> None:
    answer, asked = in_turn(first_half(identity), rest(ONE, identity))
    with answering(answer) as url:
        assert bring(url).read_bytes() == ONE
    assert len(asked) == 2


def test_a_rest_of_another_file_under_the_same_tag_is_found_by_the_archives_checksums(
    bring: Bring, log: Log
) -> None:
    answer, _ = in_turn(first_half(TAG), rest(OTHER, TAG), whole(OTHER))
    with answering(answer) as url:
        assert bring(url).read_bytes() == OTHER
    assert any("is damaged; starting again" in notice for notice in log.notices)


def test_an_archive_that_is_always_damaged_is_given_up(bring: Bring) -> None:
    answer, asked = in_turn(whole(ONE[:HALF] + OTHER[HALF:]))
    with answering(answer) as url, pytest.raises(FetchError, match="the archive it sends is damaged"):
        bring(url)
    assert len(asked) == 1


WRONG_RANGES = {
    "too early": rest(ONE, TAG, start=HALF - 10),
    "too late": rest(ONE, TAG, start=HALF + 10),
    "of another length": response(
        "206 P", [TAG, ("Content-Range", f"bytes {HALF}-99999/100000")], ONE[HALF:]
    ),
    "backwards": response("206 P", [TAG, ("Content-Range", f"bytes {HALF}-5/{len(ONE)}")], ONE[HALF:]),
    "beyond the end": response(
        "206 P", [TAG, ("Content-Range", f"bytes {HALF}-{len(ONE)}/{len(ONE)}")], ONE[HALF:]
    ),
    "no range": response("206 P", [TAG], ONE[HALF:]),
    "nonsense": response("206 P", [TAG, ("Content-Range", f"bytes \xb2-\xb3/{'9' * 5000}")], ONE[HALF:]),
    "several parts": response(
        "206 P", [TAG, ("Content-Type", "multipart/byteranges; boundary=x")], b"--x\r\n"
    ),
    "too many bytes": response(
        "206 P", [TAG, ("Content-Range", f"bytes {HALF}-{HALF + 9}/{len(ONE)}")], ONE[HALF:]
    ),
}


@pytest.mark.parametrize("wrong", WRONG_RANGES.values(), ids=WRONG_RANGES)
def test_a_wrong_range_starts_again(bring: Bring, wrong: list[bytes]) -> None:
    answer, _ = in_turn(first_half(TAG), wrong, whole(ONE))
    with answering(answer) as url:
        assert bring(url).read_bytes() == ONE


def test_ranges_shorter_than_requested_are_joined(bring: Bring) -> None:
    def answer(_: str, headers: dict[str, str]) -> Iterable[bytes]:
        start = int(headers.get("range", "bytes=0-")[6:-1])
        if not start:
            return first_half(TAG)
        part = ("Content-Range", f"bytes {start}-{min(start + 999, len(ONE) - 1)}/{len(ONE)}")
        return response("206 P", [TAG, part], ONE[start : start + 1000])

    with answering(answer) as url:
        assert bring(url).read_bytes() == ONE


def test_a_server_that_gives_a_byte_at_a_time_is_given_up(bring: Bring, tmp_path: Path) -> None:
    def answer(_: str, headers: dict[str, str]) -> Iterable[bytes]:
        start = int(headers.get("range", "bytes=0-")[6:-1])
        if not start:
            return first_half(TAG)
        return response(
            "206 P", [TAG, ("Content-Range", f"bytes {start}-{start}/{len(ONE)}")], ONE[start : start + 1]
        )

    with answering(answer) as url, pytest.raises(FetchError, match="given up after 3 attempts"):
        bring(url)
    assert PartialDownload(tmp_path / "data.zip", url).size() == HALF + 3 - 1  # kept for the next run


def test_a_server_that_restarts_for_ever_is_given_up(bring: Bring) -> None:
    """Every second response brings half of the file, every other takes it back."""
    answers = itertools.cycle([first_half(TAG), rest(OTHER, ("ETag", '"two"'))])
    with answering(lambda *_: next(answers)) as url, pytest.raises(FetchError, match="given up after 3"):
        bring(url)


def test_a_trickle_without_end_is_given_up(bring: Bring) -> None:
    gone = Event()

    def answer(*_: object) -> Iterator[bytes]:
        yield b"".join(response("200 OK", [TAG], ONE[:1000]))
        while not gone.wait(0.002):
            yield b"x"

    try:
        with answering(answer) as url, pytest.raises(FetchError, match=r"the server sent .* bytes in"):
            bring(url, pace=Pace(100_000, 0.05))
    finally:
        gone.set()


def test_headers_that_never_end_are_given_up(bring: Bring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEADER_SECONDS", 0.1)
    gone = Event()

    def answer(*_: object) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nA: "
        while not gone.wait(0.002):
            yield b"a"

    try:
        with answering(answer) as url, pytest.raises(FetchError, match="given up after 3 attempts"):
            bring(url)
    finally:
        gone.set()


def test_the_body_of_a_redirect_is_not_read(bring: Bring) -> None:
    """It has no end."""
    gone = Event()

    def answer(*_: object) -> Iterator[bytes]:
        yield b"".join(response("302 Found", [("Location", "/other.zip")]))
        while not gone.is_set():
            yield bytes(10_000)

    try:
        with answering(answer) as url, pytest.raises(FetchError, match="more than 20 redirects"):
            bring(url)
    finally:
        gone.set()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), ("0", 0.0), ("-3", None), ("\xb2", None), ("soon", None), ("", None), ("9" * 5000, None),
     ("1e3", None), ("Tue, 01 Sep 2020 10:00:00 GMT", 0.0), ("Tue, 01 Sep 2020 10:00:00", None),
     ("Tue, 99 Foo 99999999999 10:00:00 GMT", None), ("1, 2", None)],
)  # fmt: skip
def test_a_pause_that_is_no_number_is_ignored(text: str, seconds: float | None) -> None:
    assert retry_after(httpx.Response(503, headers=[(b"Retry-After", text.encode("latin-1"))])) == seconds


# --- the environment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("all_proxy", "socks5://127.0.0.1:9", EnvironmentLacksError, "socksio"),
        ("https_proxy", "ftp://127.0.0.1:9", ConfigError, "proxy address"),
        ("http_proxy", "http://[::1", ConfigError, "proxy address"),
        ("SSL_CERT_FILE", "/no/such/file.pem", ConfigError, "SSL_CERT_FILE"),
        ("SSL_CERT_FILE", __file__, ConfigError, "SSL_CERT_FILE"),
    ],
)
def test_an_environment_that_cannot_be_used_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: type[Exception], says: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(__import__("sys").modules, "socksio", None)  # as if it were not installed
    with pytest.raises(error, match=says) as caught:
        client()
    assert "\n" not in str(caught.value)


def test_a_name_that_does_not_resolve_is_given_up_at_once(bring: Bring, log: Log) -> None:
    with pytest.raises(
        FetchError, match=r"no host name resolves \(no.such.host.invalid, b.invalid\)"
    ) as caught:
        bring("http://no.such.host.invalid/x.zip", "https://b.invalid/y.zip")
    assert log == []
    assert "--from-archive" in caught.value.hint


def test_one_mirror_whose_name_does_not_resolve_is_no_matter(bring: Bring, site: Site) -> None:
    assert bring("http://no.such.host.invalid/x.zip", site.put("/data.zip", ONE)).read_bytes() == ONE
    with pytest.raises(FetchError, match=r"does not resolve.*nor from .*404"):
        bring("http://no.such.host.invalid/x.zip", f"{site.address}/nowhere.zip")


NOTES = ["", "{", "[]", '{"url": 3}', '{"url": "URL", "length": "5"}', '{"url": "URL", "length": -5}',
         '{"url": "other"}', '{"url": "URL", "more": 1}', "[" * 100_000]  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_is_damaged_is_not_trusted(bring: Bring, site: Site, tmp_path: Path, note: str) -> None:
    url = site.put("/data.zip", ONE)
    part = PartialDownload(tmp_path / "data.zip", url)
    part.path.write_bytes(OTHER[:HALF])
    part.note.write_text(note.replace("URL", url))
    assert bring(url).read_bytes() == ONE
