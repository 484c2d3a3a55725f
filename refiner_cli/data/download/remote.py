"""The other end of the wire: what a server says about a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2 as httpx

from refiner_cli._version import __version__


@dataclass(frozen=True)
class HttpMetadata:
    """What a server says about a file. An empty text: it does not say."""

    url: str
    length: int | None = None
    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, url: str, response: httpx.Response) -> HttpMetadata:
        """From the head of an answer to a request for the whole file or for a part of it."""
        whole = re.fullmatch(r"bytes .*/(\d+)", response.headers.get("content-range", ""))
        length = (
            whole[1]
            if whole
            else response.headers.get("content-length")
            if response.status_code == 200
            else None
        )
        return cls(
            url=url,
            length=int(length) if length and length.isdigit() else None,
            etag=response.headers.get("etag", ""),
            modified=response.headers.get("last-modified", ""),
        )

    @property
    def condition(self) -> str:
        """For If-Range: only a strong entity tag may be used there, or the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def same_file(self, other: HttpMetadata) -> bool:
        """Whether nothing that both state differs, and they state at least one thing both."""
        mine, others = (asdict(remote) for remote in (self, other))
        both = [key for key in ("length", "etag", "modified") if mine[key] and others[key]]
        return bool(both) and all(mine[key] == others[key] for key in both)


def client() -> httpx.Client:
    """A client with the proxies of the environment, system certificates, redirects and sane time limits."""
    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(30.0, connect=15.0),
        headers={"User-Agent": f"refiner/{__version__}", "Accept-Encoding": "identity"},
    )


def probe(web: httpx.Client, urls: Sequence[str]) -> HttpMetadata | None:
    """What the first address that answers says about the file, without fetching it; None if none answers."""
    for url in urls:
        for method in ("HEAD", "GET"):  # some servers know no HEAD; of an answer to GET only the head is read
            try:
                with web.stream(method, url) as response:
                    if response.status_code == 200 and not is_page(response):
                        return HttpMetadata.of(url, response)
            except (httpx.HTTPError, httpx.InvalidURL):
                break
    return None


def is_page(response: httpx.Response) -> bool:
    return bool(
        response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))
    )


def status(response: httpx.Response) -> str:
    return f"{response.status_code} {response.reason_phrase}".strip()


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3)."""
    text = response.headers.get("retry-after", "")
    if text.isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment.tzinfo else None
