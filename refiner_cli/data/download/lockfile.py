"""The lock file beside the data: the hash of every archive as it was fetched first.

No publisher states a checksum. So the first fetch decides, and a later one that differs is refused
until a person has looked at it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from refiner_cli.data.disk import locked, os_errors_as
from refiner_cli.data.download.catalog import Source
from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.errors import FetchError
from refiner_cli.files import write_json

LOCK_FILE = "refiner.lock"
SCHEMA = "refiner.lock/1"
_BLOCK = 1 << 20


class Lockfile:
    """The lock file of one folder of datasets, read anew by every call: other processes write it, too."""

    def __init__(self, root: Path, report: Report, stop: Event) -> None:
        self.file = root / LOCK_FILE
        self._report = report
        self._stop = stop

    def sha256(self, archive: str) -> str | None:
        """The pinned hash of an archive, or None if it was never fetched."""
        return self._read().get(archive, {}).get("sha256")

    def check(self, source: Source, path: Path, url: str = "") -> None:
        """Hash a whole file, hold it against what is known, and pin it if nothing is.

        Raises:
            FetchError: the hash is not the published one, or not the one of the first fetch.
        """
        found = hash_file(path, source.file, self._report, self._stop)
        pinned = self.sha256(source.file)
        if source.sha256 is not None and found != source.sha256:
            raise FetchError(
                f"{path} is not the published {source.file}: its SHA-256 is {found}, not {source.sha256}.",
                hint="Delete it and get it again.",
            )
        if pinned is not None and found != pinned:
            raise FetchError(
                f"{path} is not what came first as {source.file}: its SHA-256 is {found}, "
                f"but {self.file} has {pinned}.",
                hint="Delete it and get it again; or, if its publisher replaced it on purpose, "
                f"remove {source.file} from {self.file.name} and run the command again.",
            )
        if pinned is None:
            entry = {"sha256": found, "url": url, "pinned": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
            self._change(lambda archives: archives.update({source.file: entry}))

    def forget(self, archive: str) -> None:
        """Remove a pin, because the file it was taken from turned out to be damaged."""
        self._change(lambda archives: archives.pop(archive, None))

    def _change(self, change: Callable[[dict[str, dict[str, str]]], object]) -> None:
        with (
            locked(self.file.with_name(".locks") / f"{LOCK_FILE}.lock", LOCK_FILE, self._report, self._stop),
            os_errors_as(f"writing {self.file}"),
        ):
            archives = self._read()
            change(archives)
            write_json(self.file, {"schema": SCHEMA, "archives": archives})

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            value = json.loads(self.file.read_text("utf-8"))
            archives = value["archives"]
            if value["schema"] != SCHEMA or not all(
                isinstance(entry["sha256"], str) for entry in archives.values()
            ):
                raise ValueError(f"its schema is not {SCHEMA}")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError(
                f"The lock file {self.file} cannot be read ({error}).",
                hint="Mend it, or delete it to pin anew.",
            ) from None
        return dict(archives)


def hash_file(path: Path, name: str, report: Report, stop: Event) -> str:
    """SHA-256 of a file in hex, with progress. Raises StoppedError if asked to stop."""
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with os_errors_as(f"reading {path}"), path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            if stop.is_set():
                raise StoppedError
            digest.update(block)
            done += len(block)
            report(Progress("check", name, done, total))
    return digest.hexdigest()
