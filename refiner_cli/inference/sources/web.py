"""Images, archives and tables behind an address of the web (``http://``, ``https://``)."""

from __future__ import annotations

import io
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from refiner_cli.data.download.patience import RETRIED_STATUSES, Pace
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.errors import FetchError
from refiner_cli.inference.scan import UNKNOWN_VERSION, FileVersion, ImageFile, row_name
from refiner_cli.inference.sources.content import require_loadable
from refiner_cli.inference.sources.source import PlaceSource

if TYPE_CHECKING:
    import httpx2 as httpx

ATTEMPTS = 3
PAUSE_SECONDS = 0.5  # before the second attempt; doubled before the next
WEB_BLOCK = 1 << 18  # bytes
SLOWEST = Pace()  # in seconds of waiting for the server, not of decoding what it sent


def is_web(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


@cache
def web_client() -> httpx.Client:
    from refiner_cli.data.download.http import client

    return client(keep_alive=32)


@dataclass(frozen=True)
class WebContent:
    """The bytes behind an address."""

    url: str
    remote = True

    def read(self) -> bytes:
        return with_attempts(self._read)

    def _read(self) -> bytes:
        data = bytearray()
        with WebStream(self.url) as stream:
            while block := stream.read(WEB_BLOCK):
                data += block
                require_loadable(len(data))
        return bytes(data)


def with_attempts(read: Callable[[], bytes]) -> bytes:
    """What a request gives; it is repeated where that may help. Raises UnreadableError."""
    for attempt in range(ATTEMPTS - 1):
        with suppress(BusyError):
            return read()
        time.sleep(PAUSE_SECONDS * 2**attempt)
    try:
        return read()
    except BusyError as error:
        raise UnreadableError(str(error)) from None


class BusyError(OSError):
    """A request failed that may succeed later."""


class WebStream(io.RawIOBase):
    """The body of a response, read from front to back.

    Raises UnreadableError or BusyError where there is none.
    """

    def __init__(self, url: str) -> None:
        import httpx2 as httpx

        from refiner_cli.data.download.http import open_response, status

        self.stack, self.errors = ExitStack(), httpx.HTTPError
        try:
            response = self.stack.enter_context(open_response(web_client(), "GET", url))
        except httpx.HTTPError as error:
            raise BusyError(f"the server cannot be reached: {error}") from None
        except (httpx.InvalidURL, UnicodeError) as error:
            raise UnreadableError(f"the address is not valid: {error}") from None
        if response.status_code != 200:
            self.stack.close()
            said = f"the server answers {status(response)}"
            raise BusyError(said) if response.status_code in RETRIED_STATUSES else UnreadableError(said)
        # As they arrive: to fill a block could take for ever.
        self.blocks: Iterator[bytes] = response.iter_bytes()
        self.rest, self.arrived, self.waited = b"", 0, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self.rest:
            begun = time.monotonic()
            try:
                self.rest = next(self.blocks, b"")
            except self.errors as error:
                raise BusyError(f"the connection broke: {error}") from None
            self.keep_pace(len(self.rest), time.monotonic() - begun)
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count

    def keep_pace(self, arrived: int, seconds: float) -> None:
        """Raise BusyError for a server that would keep its reader waiting for ever."""
        self.arrived, self.waited = self.arrived + arrived, self.waited + seconds
        if arrived and self.waited > SLOWEST.seconds:
            if self.arrived < SLOWEST.count:
                raise BusyError(f"the server sent {self.arrived} bytes in {self.waited:.0f} s")
            self.arrived, self.waited = 0, 0.0

    def close(self) -> None:
        if not self.closed:
            self.stack.close()
        super().close()


class WebFile:
    """An archive or a table behind an address."""

    local: Path | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self) -> IO[bytes]:
        try:
            return io.BufferedReader(WebStream(self.url), WEB_BLOCK)
        except BusyError as error:
            raise FetchError(str(error)) from None

    def open_seekable(self) -> IO[bytes]:
        """A copy in a temporary file without a name."""
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        with self.open() as stream:
            shutil.copyfileobj(stream, copy, WEB_BLOCK)
        copy.seek(0)
        return copy

    def version(self) -> FileVersion:
        return UNKNOWN_VERSION


class WebImage(PlaceSource):
    """One image, under its address."""

    is_container = False

    def images(self) -> Iterator[ImageFile]:
        yield web_image(self.place)


def web_image(url: str, name: str = "") -> ImageFile:
    """The image behind an address, which is its name by default."""
    file = Path(posixpath.basename(urlsplit(url).path) or "image")
    return ImageFile(file, name or row_name(url), WebContent(url), UNKNOWN_VERSION, shown=row_name(url))
