"""The folder of datasets: what is in it, and which of it is verified.

::

    <root>/mit-states/                 a finished dataset, which appeared in one rename
    <root>/mit-states/refiner.json     when and as what it was verified
    <root>/.mit-states.partial/        one in the making; the next run goes on with it
    <root>/archives/                   what was fetched, and the parts of what is being fetched
    <root>/refiner.lock                hashes of what was fetched first
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refiner_cli.data.disk import flush, os_errors_as
from refiner_cli.data.download.catalog import Dataset
from refiner_cli.data.download.verify import Verification
from refiner_cli.files import write_json

VERIFIED_FILE = "refiner.json"
SCHEMA = "refiner.dataset/1"


@dataclass(frozen=True)
class Status:
    """One dataset of the catalogue as it stands on the disk.

    Attributes:
        verified: when it was last found whole, in ISO 8601; empty if never, or if it was not.
        unreadable: images that could not be decoded then.
        fetched: bytes of its archives, whole or in part.
    """

    dataset: Dataset
    folder: Path
    present: bool
    verified: str
    unreadable: int
    fetched: int


@dataclass(frozen=True)
class DatasetsDir:
    """A folder of datasets."""

    root: Path

    @property
    def archives(self) -> Path:
        return self.root / "archives"

    def folder(self, dataset: Dataset) -> Path:
        return self.root / dataset.name

    def work(self, dataset: Dataset) -> Path:
        return self.root / f".{dataset.name}.partial"

    def lock(self, name: str) -> Path:
        return self.root / ".locks" / f"{name}.lock"

    def status(self, dataset: Dataset) -> Status:
        folder = self.folder(dataset)
        seal = self._seal(folder)
        files = [file for source in dataset.sources for file in self.archives.glob(f"{source.file}*")]
        return Status(
            dataset=dataset,
            folder=folder,
            present=folder.is_dir(),
            verified=str(seal.get("verified", "")),
            unreadable=len(seal.get("unreadable", ())),
            fetched=sum(file.stat().st_size for file in files if file.suffix != ".json"),
        )

    def mark_verified(self, folder: Path, verification: Verification | None, name: str) -> None:
        """Note in a folder that it was verified just now."""
        told = verification.to_json() if verification else {"name": name}
        kept = {key: told[key] for key in ("name", "counts", "fingerprint", "unreadable") if key in told}
        with os_errors_as(f"writing {folder / VERIFIED_FILE}"):
            write_json(
                folder / VERIFIED_FILE,
                {"schema": SCHEMA, "verified": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **kept},
            )

    def unmark_verified(self, folder: Path) -> None:
        """Take the note back: the folder was found wanting."""
        (folder / VERIFIED_FILE).unlink(missing_ok=True)

    def publish(self, dataset: Dataset) -> Path:
        """Let a finished dataset appear, in one rename."""
        work, folder = self.work(dataset), self.folder(dataset)
        with os_errors_as(f"moving {work} to {folder}"):
            flush(work)
            work.rename(folder)
            flush(self.root)
        return folder

    def discard(self, dataset: Dataset) -> None:
        """Remove what is in the making."""
        shutil.rmtree(self.work(dataset), ignore_errors=True)

    def _seal(self, folder: Path) -> dict[str, Any]:
        try:
            seal = json.loads((folder / VERIFIED_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return seal if isinstance(seal, dict) and seal.get("schema") == SCHEMA else {}
