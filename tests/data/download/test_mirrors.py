from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data.download.catalog import Source
from refiner_cli.data.download.http import client, probe
from refiner_cli.data.download.mirrors import RetryPolicy, fetch, fetched_bytes
from refiner_cli.data.download.partial_download import PartialDownload
from refiner_cli.data.progress import StoppedError
from refiner_cli.errors import FetchError
from tests.data.conftest import Log
from tests.data.download.server import Site

ZIP = b"PK\x03\x04" + bytes(range(256)) * 400  # what is fetched is not opened here
Bring = Callable[..., None]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data.zip"


@pytest.fixture
def bring(target: Path, log: Log, stop: Event) -> Bring:
    """Fetch the given addresses to the target, patient but quick."""

    def run(
        *urls: str, attempts: int = 3, accept: Callable[[Source, Path, str], None] = lambda *_: None
    ) -> None:
        source = Source(file=target.name, urls=urls, holds="*")
        with client() as web:
            fetch(
                web,
                source,
                target,
                home="http://home.page",
                accept=accept,
                report=log,
                stop=stop,
                policy=RetryPolicy(attempts, pause=0.001),
            )

    return run


def left_over(target: Path) -> list[str]:
    return sorted(file.name for file in target.parent.iterdir() if file != target)


def test_brings_a_file_and_leaves_nothing_else(site: Site, bring: Bring, target: Path, log: Log) -> None:
    bring(site.put("/data.zip", ZIP))
    assert target.read_bytes() == ZIP
    assert left_over(target) == []
    assert log.progress("fetch")[-1].done == log.progress("fetch")[-1].total == len(ZIP)


def test_resumes_a_cut_connection_without_fetching_a_byte_twice(
    site: Site, bring: Bring, target: Path
) -> None:
    bring(site.put("/data.zip", ZIP, cuts=[30_000, 20_000]))
    assert target.read_bytes() == ZIP
    assert site.asked_for("/data.zip") == [None, "bytes=30000-", "bytes=50000-"]
    assert site.sent["/data.zip"] == len(ZIP)


def test_a_later_run_goes_on_where_an_earlier_one_was_cut(site: Site, bring: Bring, target: Path) -> None:
    url = site.put("/data.zip", ZIP, cuts=[30_000])
    with pytest.raises(FetchError, match="given up"):
        bring(url, attempts=1)
    assert fetched_bytes(target, [url]) == 30_000
    bring(url)
    assert target.read_bytes() == ZIP
    assert site.sent["/data.zip"] == len(ZIP)


def test_starts_anew_where_the_server_ignores_ranges(site: Site, bring: Bring, target: Path) -> None:
    bring(site.put("/data.zip", ZIP, ranges=False, cuts=[30_000]))
    assert target.read_bytes() == ZIP
    assert site.asked_for("/data.zip") == [None, "bytes=30000-"]


@pytest.mark.parametrize("identity", [{}, {"etag": None, "modified": "Tue, 01 Sep 2026 10:00:00 GMT"}])
def test_starts_anew_when_the_file_changed(
    site: Site, bring: Bring, target: Path, identity: dict[str, str | None]
) -> None:
    url = site.put("/data.zip", ZIP, cuts=[30_000], **identity)
    with pytest.raises(FetchError):
        bring(url, attempts=1)
    new = ZIP[:4] + bytes(len(ZIP) - 4)
    page = site.pages["/data.zip"]
    page.change(new)
    if page.modified:
        page.modified = "Wed, 02 Sep 2026 10:00:00 GMT"
    bring(url)
    assert target.read_bytes() == new


def test_starts_anew_when_a_server_without_if_range_serves_another_file(
    site: Site, bring: Bring, target: Path
) -> None:
    url = site.put("/data.zip", ZIP, etag='W/"1"', cuts=[30_000])
    with pytest.raises(FetchError):
        bring(url, attempts=1)
    site.put("/data.zip", ZIP[:4] + bytes(99), etag='W/"2"')
    bring(url)
    assert target.read_bytes() == ZIP[:4] + bytes(99)


def test_a_complete_part_of_unknown_length_is_recognised(site: Site, bring: Bring, target: Path) -> None:
    url = site.put("/data.zip", ZIP, length=False)

    def killed_before_the_rename(*_: object) -> None:
        raise FetchError("killed")

    with pytest.raises(FetchError, match="killed"):
        bring(url, accept=killed_before_the_rename)
    bring(url)
    assert target.read_bytes() == ZIP
    assert site.sent["/data.zip"] == len(ZIP)


def test_what_is_not_accepted_does_not_become_the_target(site: Site, bring: Bring, target: Path) -> None:
    def refuse(*_: object) -> None:
        raise FetchError("another hash")

    with pytest.raises(FetchError, match="another hash"):
        bring(site.put("/data.zip", ZIP), accept=refuse)
    assert not target.exists()


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_mirror_without_the_file_is_left_at_once(
    site: Site, bring: Bring, target: Path, status: int
) -> None:
    gone = site.put("/old/data.zip", b"gone", status=status)
    bring(gone, site.put("/data.zip", ZIP))
    assert target.read_bytes() == ZIP
    assert len(site.asked_for("/old/data.zip")) == 1


def test_a_busy_server_is_asked_again(site: Site, bring: Bring, target: Path, log: Log) -> None:
    bring(site.put("/data.zip", ZIP, failures=[503, 429]))
    assert target.read_bytes() == ZIP
    assert "503" in log.notices[0]
    assert "429" in log.notices[1]


def test_the_pause_that_a_server_asks_for_is_kept(site: Site, bring: Bring, target: Path, log: Log) -> None:
    bring(site.put("/data.zip", ZIP, failures=[503], headers={"Retry-After": "0"}))
    assert "another attempt in 0 s" in log.notices[0]
    assert target.read_bytes() == ZIP


def test_a_web_page_instead_of_the_archive_is_named(site: Site, bring: Bring, target: Path) -> None:
    page = b"<!DOCTYPE html><html><head><title>Sign in\n to download</title></head></html>"
    url = site.put("/data.zip", page, kind="text/html; charset=utf-8")
    with pytest.raises(FetchError, match=r"a web page \('Sign in to download'\)") as caught:
        bring(url)
    assert caught.value.exit_code == 4
    assert "--from-archive" in caught.value.hint
    assert left_over(target) == []


def test_a_page_is_recognised_by_its_content_too(site: Site, bring: Bring, target: Path) -> None:
    error = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please</Message></Error>'
    bring(site.put("/bad.zip", error), site.put("/data.zip", ZIP))
    assert target.read_bytes() == ZIP
    with pytest.raises(FetchError, match=r"an error message \('SlowDown'\)"):
        bring(site.put("/bad.zip", error))


def test_every_mirror_and_its_reason_is_named_at_the_end(site: Site, bring: Bring) -> None:
    with pytest.raises(FetchError) as caught:
        bring(f"{site.address}/nowhere.zip", "http://127.0.0.1:9/closed.zip", attempts=1)
    assert "/nowhere.zip (the server answers 404" in str(caught.value)
    assert "127.0.0.1:9/closed.zip (given up" in str(caught.value)


def test_two_mirrors_do_not_share_a_part(site: Site, bring: Bring, target: Path) -> None:
    other = ZIP[:4] + bytes(len(ZIP) - 4)
    first = site.put("/a/data.zip", ZIP, cuts=[30_000])
    with pytest.raises(FetchError):
        bring(first, attempts=1)
    site.pages["/a/data.zip"].status = 404
    site.pages["/a/data.zip"].ranges = False
    bring(first, site.put("/b/data.zip", other))
    assert target.read_bytes() == other
    assert left_over(target) == []


def test_a_part_without_its_note_is_not_trusted(site: Site, bring: Bring, target: Path) -> None:
    url = site.put("/data.zip", ZIP)
    part = PartialDownload(target, url)
    part.path.write_bytes(b"PK\x03\x04 something else")
    bring(url)
    assert target.read_bytes() == ZIP


def test_stops_when_asked_and_keeps_what_it_has(site: Site, bring: Bring, target: Path, stop: Event) -> None:
    url = site.put("/data.zip", ZIP, gate=(gate := threading.Event()))
    stop.set()
    gate.set()
    with pytest.raises(StoppedError):
        bring(url)
    assert 0 < fetched_bytes(target, [url]) < len(ZIP)
    stop.clear()
    bring(url)
    assert target.read_bytes() == ZIP


def test_proxies_of_the_environment_are_used(
    site: Site, bring: Bring, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.put("/data.zip", ZIP)
    monkeypatch.setenv("http_proxy", site.address)
    bring("http://no.such.host.invalid/data.zip")
    assert target.read_bytes() == ZIP
    assert site.vias == ["http://no.such.host.invalid/data.zip"]


def test_a_file_that_its_server_calls_gzip_encoded_is_kept_as_it_is(
    site: Site, bring: Bring, target: Path
) -> None:
    body = b"\x1f\x8b" + bytes(2000)
    bring(site.put("/data.zip", body, headers={"Content-Encoding": "gzip"}))
    assert target.read_bytes() == body


@pytest.mark.parametrize("head", [True, False])
def test_probe_tells_the_size_without_fetching(site: Site, head: bool) -> None:
    big = ZIP * 200
    url = site.put("/data.zip", big, head=head)
    with client() as web:
        remote = probe(web, [f"{site.address}/nowhere.zip", url])
    assert remote is not None
    assert (remote.url, remote.length) == (url, len(big))
    assert site.sent.get("/data.zip", 0) < len(big)
    assert site.heads == ["/data.zip"] * head


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(site: Site, bring: Bring, target: Path) -> None:
    """A limit on the size of files stands for the end of the disk; see also test_download."""
    url = site.put("/data.zip", ZIP)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(FetchError, match="disk became full while fetching") as caught:
            bring(url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old_handler)
    assert "--out" in caught.value.hint
    assert fetched_bytes(target, [url]) == 40_000
    bring(url)
    assert target.read_bytes() == ZIP


def test_kill_9_during_a_fetch_loses_nothing(site: Site, bring: Bring, target: Path) -> None:
    gate = threading.Event()
    url = site.put("/data.zip", ZIP, gate=gate)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from threading import Event
        from refiner_cli.data.download.catalog import Source
        from refiner_cli.data.download.mirrors import RetryPolicy, fetch
        from refiner_cli.data.download.http import client
        with client() as web:
            fetch(web, Source(file="data.zip", urls=({url!r},), holds="*"), Path({str(target)!r}), home="",
                  accept=lambda *_: None, report=lambda event: print(event.done, flush=True), stop=Event(),
                  policy=RetryPolicy())
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == 4096
        os.kill(process.pid, signal.SIGKILL)
    gate.set()
    assert not target.exists()
    assert json.loads(PartialDownload(target, url).note.read_text())["length"] == len(ZIP)
    bring(url)
    assert target.read_bytes() == ZIP
    assert site.asked_for("/data.zip")[-1] == "bytes=4096-"
