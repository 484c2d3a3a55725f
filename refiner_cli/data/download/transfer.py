"""One request for a file or for the rest of it, and the bytes of the response (RFC 9110, section 14).

The bytes are appended to a :class:`PartialDownload`. It starts again where the server ignores the
range, where the file has changed, and where nothing proves that the rest belongs to the same file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Event

import httpx2 as httpx

from refiner_cli.data.download.content import SNIFFED, sniff_content
from refiner_cli.data.download.http import (
    ContentRange,
    HttpMetadata,
    is_page,
    open_response,
    retry_after,
    status,
)
from refiner_cli.data.download.partial_download import PartialDownload
from refiner_cli.data.download.patience import RETRIED_STATUSES, Pace
from refiner_cli.data.progress import Progress, Report, StoppedError


class MirrorError(Exception):
    """This address does not have the file; the message says what it has."""


class TransientError(Exception):
    """Something that may be over in a moment."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait  # seconds that the server requested


def transfer(web: httpx.Client, part: PartialDownload, report: Report, stop: Event, pace: Pace) -> None:
    """Send one request, and append the bytes of the response. Nothing is sent if the part is complete.

    Raises:
        TransientError, httpx.TransportError: another attempt may succeed; what arrived is kept.
        MirrorError, httpx.HTTPError, httpx.InvalidURL: this address does not have the file.
        StoppedError: ``stop`` was set.
    """
    known, have = _resumable(part)
    if known and known.length == have:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": known.validator} if known else {}
    with open_response(web, "GET", part.url, headers) as response:
        remote = HttpMetadata.of(part.url, response)
        if known and response.status_code == 416 and _is_complete(known, have, remote):
            return  # every byte is here; only its length was never stated
        if response.status_code == 416 or (
            response.status_code == 206 and not _continues(response, remote, known, have)
        ):
            part.discard()
            raise TransientError("the server does not continue the same file, so it starts again", wait=0)
        if response.status_code in RETRIED_STATUSES:
            raise TransientError(f"the server answers {status(response)}", retry_after(response))
        if response.status_code not in {200, 206}:
            raise MirrorError(f"the server answers {status(response)}")
        if is_page(response):
            head = next(response.iter_raw(SNIFFED), b"")
            raise MirrorError(f"the server sends {sniff_content(head) or 'a web page'}")
        blocks = response.iter_raw()
        if response.status_code == 200:
            blocks, have = _sniffed(blocks), 0
            part.start(remote)
        # A server may send less of a range than requested, but never more than it announced.
        sent = ContentRange.of(response)
        most = (
            sent.end + 1 if sent and sent.end is not None and response.status_code == 206 else remote.length
        )
        total = remote.length if remote.length is not None or not known else known.length
        _append(_paced(blocks, pace), part, have, most, report, stop, total)


def _resumable(part: PartialDownload) -> tuple[HttpMetadata | None, int]:
    """What a part belongs to and how many bytes it has; nothing if it cannot be resumed safely."""
    known = part.remote()
    have = part.size() if known else 0
    if known and known.length == have:
        return known, have
    if not known or not known.validator or not have or (known.length is not None and have > known.length):
        return None, 0
    return known, have


def _is_complete(known: HttpMetadata, have: int, remote: HttpMetadata) -> bool:
    """Whether a server that has no byte after the last of ours speaks of the same file."""
    return remote.length == have and remote.validator in {"", known.validator}


def _continues(response: httpx.Response, remote: HttpMetadata, known: HttpMetadata | None, have: int) -> bool:
    """Whether a partial response holds exactly the bytes that come next, and names the same file."""
    part = ContentRange.of(response)
    if not known or not part or part.start != have or part.end is None or part.end < have:
        return False
    total = known.length if part.total is None else part.total
    return (
        total is not None
        and known.length in {None, total}
        and part.end < total
        and remote.validator == known.validator
    )


def _append(
    blocks: Iterator[bytes],
    part: PartialDownload,
    have: int,
    most: int | None,
    report: Report,
    stop: Event,
    total: int | None,
) -> None:
    """Append blocks to a part of ``have`` bytes, until it has ``most``; complete it is with ``total``."""
    with part.path.open("ab") as stream:
        for block in blocks:
            have += len(block)
            if most is not None and have > most:
                break
            stream.write(block)
            stream.flush()  # a kill loses nothing that arrived
            report(Progress("fetch", part.target.name, have, total))
            if stop.is_set():
                raise StoppedError
    if most is not None and have > most:
        part.discard()
        raise TransientError(f"the server sends more than the {most} bytes that it announced")
    if total is not None and have < total:
        raise TransientError(f"the connection ended after {have} of {total} bytes")


def _paced(blocks: Iterator[bytes], pace: Pace) -> Iterator[bytes]:
    """The same blocks. Raises TransientError when they arrive too slowly to ever finish."""
    since, arrived = time.monotonic(), 0
    for block in blocks:
        yield block
        arrived += len(block)
        now = time.monotonic()
        if now - since > pace.seconds:
            if arrived < pace.count:
                raise TransientError(f"the server sent {arrived} bytes in {now - since:.0f} s")
            since, arrived = now, 0


def _sniffed(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, after a look at the first of them. Raises MirrorError for what is not an archive."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= SNIFFED:
            break
    if kind := sniff_content(head):
        raise MirrorError(f"the server sends {kind}")
    yield head
    yield from blocks
