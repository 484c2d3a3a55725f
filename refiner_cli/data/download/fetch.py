"""One file over HTTP: resumed where it stopped, from the first mirror that has it.

The bytes go to ``<file>.<mirror>.part`` beside a ``.json`` note of what the server said about the
file, and the target appears in one rename when all bytes are there. A later run, or a later attempt
of this one, asks for the rest (RFC 9110, section 14) and starts anew where the server ignores the
question or the file has changed. Each mirror has a part of its own, for two mirrors may serve two
different files under one name.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

import httpx2 as httpx

from refiner_cli.data.disk import os_errors_as
from refiner_cli.data.download.catalog import Source
from refiner_cli.data.download.content import sniff_content
from refiner_cli.data.download.partial_download import PartialDownload
from refiner_cli.data.download.remote import HttpMetadata, is_page, retry_after, status
from refiner_cli.data.progress import Notice, Progress, Report, StoppedError
from refiner_cli.errors import FetchError

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another attempt at the same address
_LONGEST_WAIT = 60.0


class MirrorError(Exception):
    """This address does not have the file; the message says what it has."""


class TransientError(Exception):
    """Something that may be over in a moment."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait  # seconds the server asked for


@dataclass(frozen=True)
class RetryPolicy:
    """How often one address is tried without any progress, and the first pause, which doubles."""

    attempts: int = 5
    pause: float = 1.0

    def wait(self, failures: int) -> float:
        """Seconds to wait after so many failures; spread a little, so that a crowd does not march in step."""
        return float(min(self.pause * 2 ** (failures - 1), _LONGEST_WAIT) * random.uniform(0.8, 1.2))


def fetched_already(target: Path, urls: Sequence[str]) -> int:
    """Bytes of the largest part that an earlier run left."""
    parts = [PartialDownload(target, url).path for url in urls]
    return max((part.stat().st_size for part in parts if part.is_file()), default=0)


def fetch(
    web: httpx.Client,
    source: Source,
    target: Path,
    *,
    by_hand: str,
    accept: Callable[[Source, Path, str], None],
    report: Report,
    stop: Event,
    patience: RetryPolicy,
) -> None:
    """Bring a file to ``target``.

    Args:
        by_hand: the page where a person can get it, for the message when every address fails.
        accept: called with the source, the complete file and its address before it becomes the target;
            what it raises keeps the file from doing so.
        stop: set by the caller to end early; what is there is kept.

    Raises:
        FetchError: no address has it, or the disk does not take it. The parts stay for the next run.
        StoppedError: ``stop`` was set.
    """
    failures: list[str] = []
    for url in source.urls:
        part = PartialDownload(target, url)
        try:
            with os_errors_as(f"fetching {target.name} to {target.parent}"):
                _fetch_from(web, part, report, stop, patience)
                accept(source, part.path, url)
                part.finish()
                for other in source.urls:
                    PartialDownload(target, other).drop()
                return
        except MirrorError as error:
            part.drop_if_empty()
            failures.append(f"{url} ({error})")
            report(Notice(f"{url}: {error}."))
    raise FetchError(
        f"{target.name} could not be fetched from {'; nor from '.join(failures)}.",
        hint=f"Try again later, or get it by hand ({by_hand}) and hand it over with --from-archive FILE.",
    )


def _fetch_from(
    web: httpx.Client, part: PartialDownload, report: Report, stop: Event, patience: RetryPolicy
) -> None:
    """Fill a part. Raises MirrorError when this address is to be given up."""
    failures = 0
    while True:
        before = part.size() if part.remote() else 0
        try:
            return _attempt(web, part, report, stop)
        except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise MirrorError(str(error)) from None
        except (httpx.TransportError, TransientError) as error:
            reason = str(error) or type(error).__name__
            failures = 1 if part.remote() and part.size() > before else failures + 1
            if failures >= patience.attempts:
                raise MirrorError(f"given up after {patience.attempts} attempts: {reason}") from None
            asked = error.wait if isinstance(error, TransientError) else None
            wait = patience.wait(failures) if asked is None else min(asked, _LONGEST_WAIT)
            report(Notice(f"{part.target.name}: {reason}; another attempt in {wait:.0f} s."))
            if stop.wait(wait):
                raise StoppedError from None


def _attempt(web: httpx.Client, part: PartialDownload, report: Report, stop: Event) -> None:
    """One request, and all bytes it brings."""
    known = part.remote()
    have = part.size() if known else 0
    if known and known.length == have:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    if known and have and known.condition:
        headers["If-Range"] = known.condition
    with web.stream("GET", part.url, headers=headers) as response:
        remote = HttpMetadata.of(part.url, response)
        if (
            response.status_code == 416
            and known
            and have == remote.length
            and remote.same_file(replace(known, length=have))
        ):
            return  # every byte is here; only its length was never told
        if response.status_code == 416 or (
            response.status_code == 206 and not _continues(response, known, have)
        ):
            part.drop()
            raise TransientError("the file has changed on the server", wait=0)
        if response.status_code in _PASSING:
            raise TransientError(f"the server answers {status(response)}", retry_after(response))
        if response.status_code not in {200, 206}:
            raise MirrorError(f"the server answers {status(response)}")
        if is_page(response):
            head = next(response.iter_bytes(), b"")
            raise MirrorError(f"the server sends {sniff_content(head) or 'a web page'} instead of the file")
        if response.status_code == 200:
            blocks = _checked(response.iter_raw())
            have = 0
            part.start(remote)
        else:
            blocks = response.iter_raw()
        with part.path.open("ab") as stream:
            for block in blocks:
                stream.write(block)
                stream.flush()  # a kill loses nothing that arrived
                have += len(block)
                report(Progress("fetch", part.target.name, have, remote.length))
                if stop.is_set():
                    raise StoppedError
        if remote.length is not None and have != remote.length:
            raise TransientError(f"the connection ended after {have} of {remote.length} bytes")


def _continues(response: httpx.Response, known: HttpMetadata | None, have: int) -> bool:
    """Whether a partial answer holds exactly the bytes that come next of the same file."""
    begins = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return bool(
        known and begins and int(begins[1]) == have and HttpMetadata.of(known.url, response).same_file(known)
    )


def _checked(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, after a look at the first of them. Raises MirrorError for what is no archive."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 512:
            break
    if kind := sniff_content(head):
        raise MirrorError(f"the server sends {kind} instead of the file")
    yield head
    yield from blocks
