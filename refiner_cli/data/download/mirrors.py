"""The mirrors of one file: it comes from the first that has it, resumed where an earlier run stopped.

The bytes go to ``<file>.<mirror>.part`` beside a ``.json`` note of what the server said about the
file, and the target appears in one rename when it is complete. Each mirror has a part of its own,
because two mirrors may serve different files under one name.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import httpx2 as httpx

from refiner_cli.data.disk import os_errors_as
from refiner_cli.data.download.archive import ArchiveError
from refiner_cli.data.download.catalog import Source
from refiner_cli.data.download.http import is_unresolved, is_untrusted
from refiner_cli.data.download.partial_download import PartialDownload
from refiner_cli.data.download.patience import Pace
from refiner_cli.data.download.transfer import MirrorError, TransientError, transfer
from refiner_cli.data.progress import Notice, Report, StoppedError
from refiner_cli.errors import FetchError

_LONGEST_WAIT = 60.0


class UnresolvedHostError(MirrorError):
    """The host name of this address does not resolve."""


@dataclass(frozen=True)
class RetryPolicy:
    """When one address is given up.

    Attributes:
        attempts: attempts in a row without progress.
        pause: seconds before the second attempt; doubles with every further one.
        pace: an attempt that is slower ends; one that fetches less has made no progress.
    """

    attempts: int = 5
    pause: float = 1.0
    pace: Pace = field(default_factory=Pace)

    def wait(self, failures: int) -> float:
        """Seconds to wait after some failures in a row, with some random spread."""
        return float(min(self.pause * 2 ** (failures - 1), _LONGEST_WAIT) * random.uniform(0.8, 1.2))


def fetched_bytes(target: Path, urls: Sequence[str]) -> int:
    """Bytes of the largest part that an earlier run left."""
    return max((PartialDownload(target, url).size() for url in urls), default=0)


def fetch(
    web: httpx.Client,
    source: Source,
    target: Path,
    *,
    home: str,
    accept: Callable[[Source, Path, str], None],
    report: Report,
    stop: Event,
    policy: RetryPolicy,
) -> None:
    """Fetch a file to ``target``.

    Args:
        home: the page where a person can get it, for the message when every address fails.
        accept: called with the source, the complete file and its address before it becomes the target.
            Its ArchiveError makes the next address be tried; its other errors are final.
        stop: set by the caller to end early; what has arrived is kept.

    Raises:
        FetchError: no address has it, or the disk does not take it. The parts stay for the next run.
        StoppedError: ``stop`` was set.
    """
    failures: dict[str, MirrorError] = {}
    for url in source.urls:
        part = PartialDownload(target, url)
        try:
            with os_errors_as(f"fetching {target.name} to {target.parent}"):
                _fetch_accepted(web, source, part, accept, report, stop, policy)
                part.finish()
                for other in source.urls:
                    PartialDownload(target, other).discard()
                return
        except MirrorError as error:
            part.discard_if_empty()
            failures[url] = error
            if not isinstance(error, UnresolvedHostError):
                report(Notice(f"{url}: {error}."))
    if all(isinstance(error, UnresolvedHostError) for error in failures.values()):
        raise offline_error(source, home)
    tried = "; nor from ".join(f"{url} ({error})" for url, error in failures.items())
    raise FetchError(
        f"{target.name} could not be fetched from {tried}.",
        hint=f"Try again later, or get it by hand ({home}) and pass it with --from-archive FILE.",
    )


def offline_error(source: Source, home: str) -> FetchError:
    """The error for a file none of whose host names resolves."""
    hosts = ", ".join(dict.fromkeys(urlsplit(url).hostname or url for url in source.urls))
    return FetchError(
        f"{source.file} cannot be fetched: no host name resolves ({hosts}).",
        hint=f"Check the network, or get it by hand ({home}) and pass it with --from-archive FILE.",
    )


def _fetch_accepted(
    web: httpx.Client,
    source: Source,
    part: PartialDownload,
    accept: Callable[[Source, Path, str], None],
    report: Report,
    stop: Event,
    policy: RetryPolicy,
) -> None:
    """Fill a part and check it. A damaged one that was joined from pieces is fetched once more."""
    for may_restart in (True, False):
        joined = _fetch_from(web, part, report, stop, policy)
        try:
            return accept(source, part.path, part.url)
        except ArchiveError as error:
            part.discard()
            if not (joined and may_restart):
                raise MirrorError(f"the archive it sends {error.problem}") from None
            report(Notice(f"{part.target.name}: the resumed file is damaged; starting again."))
    return None


def _fetch_from(
    web: httpx.Client, part: PartialDownload, report: Report, stop: Event, policy: RetryPolicy
) -> bool:
    """Fill a part; returns whether it was joined from pieces. Raises MirrorError to give the address up."""
    failures, furthest = 0, part.size() if part.remote() else 0
    joined = furthest > 0
    while True:
        try:
            transfer(web, part, report, stop, policy.pace)
            return joined
        except (httpx.TransportError, TransientError) as error:
            if isinstance(error, httpx.UnsupportedProtocol) or is_untrusted(error):
                raise MirrorError(str(error)) from None
            if is_unresolved(error):
                raise UnresolvedHostError(f"its host name does not resolve ({error})") from None
            reason = str(error) or type(error).__name__
            size = part.size() if part.remote() else 0
            joined = size > 0
            failures = 1 if size >= furthest + policy.pace.count else failures + 1
            furthest = max(furthest, size)  # else a server that always restarts would never be given up
            if failures >= policy.attempts:
                raise MirrorError(f"given up after {policy.attempts} attempts: {reason}") from None
            requested = error.wait if isinstance(error, TransientError) else None
            wait = policy.wait(failures) if requested is None else min(requested, _LONGEST_WAIT)
            report(Notice(f"{part.target.name}: {reason}; another attempt in {wait:.0f} s."))
            if stop.wait(wait):
                raise StoppedError from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise MirrorError(str(error) or type(error).__name__) from None
