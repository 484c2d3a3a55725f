"""HTTP: the client, and what a server says about a file."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import httpx2 as httpx
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from refiner_cli._version import __version__
from refiner_cli.errors import ConfigError, EnvironmentLacksError

MAX_REDIRECTS = 20
HEADER_SECONDS = 60.0  # for the headers of one response to arrive
_STRONG_TAG = r'"[\x21\x23-\x7e]+"'  # a weak one begins with W/; other bytes cannot be sent back
_NUMBER = "[0-9]{1,18}"  # below 2**63; int() also takes other digits, and refuses very long ones


class HttpMetadata(BaseModel):
    """What a server says about a file. An empty text: it does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str
    length: NonNegativeInt | None = None
    etag: str = ""
    modified: str = ""

    @classmethod
    def of(cls, url: str, response: httpx.Response) -> Self:
        """From the headers of a response to a request for the complete file or for a part of it."""
        part = ContentRange.of(response)
        length = response.headers.get("content-length", "") if response.status_code == 200 else ""
        complete = int(length) if re.fullmatch(_NUMBER, length) else None
        return cls(
            url=url,
            length=part.total if part else complete,
            etag=response.headers.get("etag", ""),
            modified=response.headers.get("last-modified", ""),
        )

    @property
    def validator(self) -> str:
        """What identifies the bytes, for If-Range: a strong entity tag, else the date; empty if neither."""
        if re.fullmatch(_STRONG_TAG, self.etag):
            return self.etag
        return self.modified if _parse_date(self.modified) else ""


@dataclass(frozen=True)
class ContentRange:
    """The header of that name (RFC 9110, section 14.4); start and end are None where no part is sent."""

    start: int | None
    end: int | None  # inclusive
    total: int | None

    @classmethod
    def of(cls, response: httpx.Response) -> Self | None:
        """The range of a response; None if it has none, or one that is malformed."""
        text = response.headers.get("content-range", "").strip()
        found = re.fullmatch(rf"bytes (?:({_NUMBER})-({_NUMBER})|\*)/(?:({_NUMBER})|\*)", text)
        return cls(*(int(number) if number else None for number in found.groups())) if found else None


def client(*, keep_alive: int = 0) -> httpx.Client:
    """A client with the proxies and certificates of the environment, and a limit for every wait.

    Args:
        keep_alive: idle connections that are kept; 0: every request has its own.

    Raises:
        EnvironmentLacksError: a SOCKS proxy is set, and the package for it is not installed.
        ConfigError: a proxy address or a certificate file of the environment cannot be used.
    """
    try:
        return httpx.Client(
            timeout=httpx.Timeout(30.0, connect=15.0),
            limits=httpx.Limits(max_keepalive_connections=keep_alive),
            headers={"User-Agent": f"refiner/{__version__}", "Accept-Encoding": "identity"},
        )
    except ImportError:
        raise EnvironmentLacksError(
            "The environment names a SOCKS proxy, which needs the package socksio.",
            hint="Run 'pip install socksio', or unset all_proxy.",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({error}).",
            hint="Correct or unset that variable.",
        ) from None
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"A proxy address of the environment is not valid ({error}).",
            hint="Correct or unset http_proxy, https_proxy and all_proxy.",
        ) from None


@contextmanager
def open_response(
    web: httpx.Client, method: str, url: str, headers: Mapping[str, str] | None = None
) -> Iterator[httpx.Response]:
    """Send a request, follow redirects, and yield the response with its body unread.

    httpx would read the body of a redirect into memory, however large it is, and wait for ever for
    headers that arrive byte by byte.
    """
    request = web.build_request(method, url, headers=headers)
    for redirects in range(MAX_REDIRECTS + 1):
        with _Deadline(HEADER_SECONDS) as deadline:
            request.extensions = {**request.extensions, "trace": deadline.trace}
            try:
                response = web.send(request, stream=True)
            except httpx.ConnectError as error:
                if not redirects:
                    raise
                problem = f"it redirects to {request.url.host}: {error}"
                response = None
        if response is None:  # raised here, not as a consequence of a name that does not resolve
            raise httpx.NetworkError(problem, request=request)
        try:
            if response.next_request is None:
                yield response
                return
            request = response.next_request
        finally:
            response.close()
    raise httpx.TooManyRedirects(f"more than {MAX_REDIRECTS} redirects", request=request)


class _Deadline:
    """Breaks the connection of a request when the headers of its response take too long."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._break)
        self._timer.daemon = True
        self._connection: socket.socket | None = None

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of the connection; called by httpx."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._connection = info["return_value"].get_extra_info("socket")

    def _break(self) -> None:
        if self._connection is not None:
            with suppress(OSError):  # it may have ended meanwhile
                socket.socket.shutdown(self._connection, socket.SHUT_RDWR)


def probe(web: httpx.Client, urls: Sequence[str]) -> HttpMetadata | None:
    """What the first address that has the file says about it, without its body; None if none has it.

    Raises httpx.ConnectError if no host name resolves.
    """
    unresolved: list[httpx.ConnectError] = []
    for url in urls:
        for method in ("HEAD", "GET"):  # some servers do not know HEAD; the body of a GET is not read
            try:
                with open_response(web, method, url) as response:
                    if response.status_code == 200 and not is_page(response):
                        return HttpMetadata.of(url, response)
            except httpx.ConnectError as error:
                unresolved += [error] if is_unresolved(error) else []
                break
            except (httpx.HTTPError, httpx.InvalidURL):
                break
    if unresolved and len(unresolved) == len(urls):
        raise unresolved[0]
    return None


def is_unresolved(error: BaseException) -> bool:
    """Whether a connection failed because its host name does not resolve."""
    return _is_caused_by(error, socket.gaierror)


def is_untrusted(error: BaseException) -> bool:
    """Whether a connection failed because the server's certificate is not valid."""
    return _is_caused_by(error, ssl.SSLCertVerificationError)


def is_page(response: httpx.Response) -> bool:
    """Whether a server sends a web page."""
    kind = response.headers.get("content-type", "").lower()
    return bool(kind.startswith(("text/html", "application/xhtml")))


def status(response: httpx.Response) -> str:
    """``"404 Not Found"``."""
    return f"{response.status_code} {response.reason_phrase}".strip()


def retry_after(response: httpx.Response) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3); None if it is malformed."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(_NUMBER, text):
        return float(text)
    moment = _parse_date(text)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment else None


def _parse_date(text: str) -> datetime | None:
    """The time that a header states; None if it is malformed."""
    try:
        moment = parsedate_to_datetime(text) if text.isascii() else None
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment and moment.tzinfo else None


def _is_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, kind):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False
