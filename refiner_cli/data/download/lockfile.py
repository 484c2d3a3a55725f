"""The lock file beside the data: the hash of every archive as it was first downloaded.

Publishers rarely state a checksum. So the first download decides, after the archive has passed its
own checks, and a later one that differs is refused until a person has looked at it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refiner_cli.data.disk import locked, os_errors_as
from refiner_cli.data.download.archive import ArchiveError
from refiner_cli.data.download.catalog import Source, first_problem
from refiner_cli.data.download.content import open_archive
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.errors import FetchError
from refiner_cli.files import write_json

LOCK_FILE = "refiner.lock"
_HASH_BLOCK = 1 << 20


class Pin(BaseModel):
    """The archive that came first."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    url: str = ""
    pinned: str = ""  # when, in ISO 8601


class Pins(BaseModel):
    """The content of a lock file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    format: Literal["refiner.lock/1"] = Field("refiner.lock/1", alias="schema")
    archives: dict[str, Pin] = {}


class Lockfile:
    """The lock file of one folder of datasets, read again by every call: other processes write it, too."""

    def __init__(self, root: Path, report: Report, stop: Event) -> None:
        self.file = root / LOCK_FILE
        self._report = report
        self._stop = stop

    def check(self, source: Source, path: Path, url: str = "") -> None:
        """Compare a complete file with what is known of it; if nothing is, check its content and pin it.

        Raises:
            ArchiveError: the file does not have the published hash; or nothing is known, and it is damaged.
            FetchError: it does not have the hash of the first download.
        """
        found = hash_file(path, source.file, self._report, self._stop)
        pin = self._read().archives.get(source.file)
        if source.sha256 is not None and found != source.sha256:
            raise ArchiveError(
                path,
                f"is not the published {source.file}: its SHA-256 is {found}, not {source.sha256}",
                "Delete it and get it again.",
            )
        if pin is not None and found != pin.sha256:
            raise FetchError(
                f"{path} differs from the {source.file} downloaded earlier: its SHA-256 is {found}, "
                f"but {self.file} has {pin.sha256}.",
                hint="Delete it and get it again; or, if its publisher replaced it on purpose, "
                f"remove {source.file} from {self.file.name} and run the command again.",
            )
        if pin is None:
            if source.sha256 is None:
                with open_archive(path) as archive:
                    archive.check(self._report, self._stop)
            new = Pin(sha256=found, url=url, pinned=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
            self._change(lambda archives: archives.update({source.file: new}))

    def has(self, archive: str) -> bool:
        """Whether an archive was downloaded earlier."""
        return archive in self._read().archives

    def pin(self, archive: str) -> dict[str, str] | None:
        """Hash, address and time of an archive's first download, if there was one."""
        pin = self._read().archives.get(archive)
        return pin.model_dump() if pin else None

    def forget(self, archive: str) -> None:
        """Remove a pin, because the file it was taken from turned out to be damaged."""
        self._change(lambda archives: archives.pop(archive, None))

    def _change(self, change: Callable[[dict[str, Pin]], object]) -> None:
        with (
            locked(self.file.with_name(".locks") / f"{LOCK_FILE}.lock", LOCK_FILE, self._report, self._stop),
            os_errors_as(f"writing {self.file}"),
        ):
            archives = dict(self._read().archives)
            change(archives)
            write_json(self.file, Pins(archives=archives).model_dump(by_alias=True))

    def _read(self) -> Pins:
        try:
            return Pins.model_validate_json(self.file.read_bytes())
        except FileNotFoundError:
            return Pins()
        except (OSError, ValidationError) as error:
            reason = str(error) if isinstance(error, OSError) else first_problem(error)
            raise FetchError(
                f"The lock file {self.file} cannot be read ({reason}).",
                hint="Fix it, or delete it to pin every archive again.",
            ) from None


def hash_file(path: Path, name: str, report: Report, stop: Event) -> str:
    """SHA-256 of a file in hex, with progress. Raises StoppedError when ``stop`` is set."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with os_errors_as(f"reading {path}"), path.open("rb") as stream:
        while block := stream.read(_HASH_BLOCK):
            if stop.is_set():
                raise StoppedError
            digest.update(block)
            done += len(block)
            report(Progress("check", name, done, total))
    return digest.hexdigest()
