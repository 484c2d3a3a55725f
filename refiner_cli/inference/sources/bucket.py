"""Object stores and other file systems that fsspec knows: ``s3://``, ``gs://``, ``hf://`` and so on."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from refiner_cli.data.image_file import UnreadableError
from refiner_cli.errors import EnvironmentLacksError, FetchError, InputError, UsageError
from refiner_cli.files import reason_of
from refiner_cli.inference.scan import FileVersion, ImageFile, row_name
from refiner_cli.inference.sources.content import require_loadable
from refiner_cli.inference.sources.source import PlaceSource, takes_member

BUCKET_BLOCK = 4 << 20  # bytes that are fetched at once


@cache
def bucket_system(scheme: str) -> Any:
    """The file system of a scheme. Raises EnvironmentLacksError or UsageError."""
    try:
        import fsspec
    except ImportError:
        raise EnvironmentLacksError(
            f"Places that begin with {scheme}:// need the package fsspec.",
            hint="Run: pip install 'refiner-czsl[remote]'",
        ) from None
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        raise EnvironmentLacksError(
            f"Places that begin with {scheme}:// need another package ({error}).",
            hint="Run: pip install 'refiner-czsl[remote]'",
        ) from None
    except ValueError:
        raise UsageError(
            f"Places that begin with {scheme}:// are not known.", hint="Known are s3, gs, hf, http and https."
        ) from None


def split_scheme(url: str) -> tuple[str, str]:
    """``s3://bucket/key`` -> ``s3`` and ``bucket/key``."""
    scheme, _, path = url.partition("://")
    return scheme.lower(), path


def system_of(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    scheme, _ = split_scheme(url)
    system = bucket_system(scheme)
    return system, str(system._strip_protocol(url))  # noqa: SLF001 - fsspec documents it for such use


@dataclass(frozen=True)
class BucketContent:
    """The bytes of an object."""

    url: str
    size: int | None = None
    remote = True

    def read(self) -> bytes:
        system, path = system_of(self.url)
        try:
            size = self.size if self.size is not None else system.info(path).get("size")
            require_loadable(size or 0)
            data: bytes = system.cat_file(path)
        except UnreadableError:
            raise
        except FileNotFoundError:
            raise UnreadableError("it does not exist") from None
        except Exception as error:  # noqa: BLE001 - every store has its own errors
            raise UnreadableError(reason_of(error)) from None
        return data


class BucketStream(io.RawIOBase):
    """A file of fsspec whose errors, which every store has its own of, are OSErrors."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self.inner.read(len(buffer))
        except Exception as error:  # noqa: BLE001 - see above
            raise OSError(reason_of(error)) from None
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self.inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self.inner.tell())

    def close(self) -> None:
        if not self.closed:
            self.inner.close()
        super().close()


class BucketFile:
    """An archive or a table in an object store."""

    local: Path | None = None

    def __init__(self, url: str) -> None:
        self.url = url

    def open_seekable(self) -> IO[bytes]:
        return self.open()

    def open(self) -> IO[bytes]:
        system, path = system_of(self.url)
        try:
            stream = system.open(path, "rb", block_size=BUCKET_BLOCK)
        except FileNotFoundError:
            raise FetchError("it does not exist") from None
        except Exception as error:  # noqa: BLE001 - every store has its own errors
            raise FetchError(reason_of(error)) from None
        return io.BufferedReader(BucketStream(stream), BUCKET_BLOCK)

    def version(self) -> FileVersion:
        system, path = system_of(self.url)
        with suppress(Exception):
            return object_version(system.info(path))
        return FileVersion()


def object_version(info: dict[str, Any]) -> FileVersion:
    """What a listing says of an object: its size, and when it was written or what it holds."""
    keys = ("LastModified", "last_modified", "mtime", "updated", "ETag", "blob_id")
    stamp: Any = next((info[key] for key in keys if info.get(key)), "")
    text = stamp.isoformat() if isinstance(stamp, dt.datetime) else str(stamp)
    return FileVersion(info.get("size"), text or None)


class BucketFolder(PlaceSource):
    """The images below a prefix of an object store."""

    def images(self) -> Iterator[ImageFile]:
        system, root = system_of(self.place)
        self.complete = True
        scheme, _ = split_scheme(self.place)
        try:
            for folder, _, files in system.walk(root, detail=True, on_error="raise"):
                for name in sorted(files):
                    path = f"{folder}/{name}"
                    below = path.removeprefix(root.rstrip("/")).lstrip("/")
                    if takes_member(below, self.chosen):
                        yield bucket_image(f"{scheme}://{path}", row_name(below), files[name])
        except Exception as error:  # noqa: BLE001 - every store has its own errors
            yield self.damaged(error)


class BucketImage(PlaceSource):
    """One object, under its address."""

    is_container = False

    def images(self) -> Iterator[ImageFile]:
        yield bucket_image(self.place, row_name(self.place))


def bucket_image(url: str, name: str, info: dict[str, Any] | None = None) -> ImageFile:
    """The image that is an object, with what a listing says of it."""
    version = object_version(info) if info else FileVersion()
    return ImageFile(Path(url.rpartition("/")[2] or "image"), name,
                     BucketContent(url, version.size), version, shown=row_name(url))  # fmt: skip


def expand_pattern(url: str) -> list[str]:
    """The objects that a pattern with ``*`` means, sorted. Raises FetchError or InputError."""
    system, path = system_of(url)
    try:
        found = sorted(str(one) for one in system.glob(path))
    except Exception as error:  # noqa: BLE001 - every store has its own errors
        raise FetchError(f"{url} cannot be listed ({reason_of(error)}).") from None
    if not found:
        raise InputError(f"Nothing matches {url}.")
    return [f"{split_scheme(url)[0]}://{one}" for one in found]


def is_bucket_folder(url: str) -> bool:
    """Whether an address names a folder rather than an object. Raises FetchError where nobody can tell."""
    system, path = system_of(url)
    try:
        return bool(system.isdir(path))
    except Exception as error:  # noqa: BLE001 - every store has its own errors
        raise FetchError(f"{url} cannot be looked at ({reason_of(error)}).") from None
