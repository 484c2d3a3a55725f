"""The folder of datasets: what it holds, and which of it is verified.

::

    <root>/mit-states/                 a complete dataset, which appeared in one rename
    <root>/mit-states/refiner.json     when it was verified, and with what result
    <root>/.mit-states.partial/        one that is not complete; the next run resumes it
    <root>/archives/                   downloaded archives, and parts of unfinished downloads
    <root>/refiner.lock                hashes of the first downloads
"""

from __future__ import annotations

import glob
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refiner_cli.data.disk import os_errors_as
from refiner_cli.data.download.catalog import Counts, Dataset
from refiner_cli.data.download.verify import Verification
from refiner_cli.files import move_into_place, write_json

VERIFIED_FILE = "refiner.json"


class UnreadableNote(BaseModel):
    """An image that could not be decoded."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    path: str
    reason: str


class VerifiedNote(BaseModel):
    """The content of ``refiner.json``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

    format: Literal["refiner.dataset/1"] = Field("refiner.dataset/1", alias="schema")
    verified: str  # when, in ISO 8601
    name: str
    counts: Counts | None = None
    fingerprint: str = ""
    unreadable: tuple[UnreadableNote, ...] = Field((), strict=False)  # a list in JSON


@dataclass(frozen=True)
class Status:
    """One dataset of the catalogue as it stands on the disk.

    Attributes:
        verified: when it was last found complete, in ISO 8601; empty if never, or if it was not.
        unreadable: images that could not be decoded then.
        fetched: bytes of its archives, complete or partial.
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
        note = _read_note(folder)
        files = [
            file
            for source in dataset.sources
            for file in (
                self.archives / source.file,
                *self.archives.glob(f"{glob.escape(source.file)}.*.part"),
            )
        ]
        return Status(
            dataset=dataset,
            folder=folder,
            present=folder.is_dir(),
            verified=note.verified if note else "",
            unreadable=len(note.unreadable) if note else 0,
            fetched=sum(file.stat().st_size for file in files if file.is_file()),
        )

    def mark_verified(self, folder: Path, verification: Verification | None, name: str) -> None:
        """Note in a folder that it was verified just now."""
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        note = VerifiedNote(verified=now, name=name)
        if verification:
            note = VerifiedNote(
                verified=now,
                name=verification.name,
                counts=verification.counts,
                fingerprint=verification.fingerprint,
                unreadable=tuple(
                    UnreadableNote(path=f.path, reason=f.reason) for f in verification.unreadable
                ),
            )
        with os_errors_as(f"writing {folder / VERIFIED_FILE}"):
            write_json(folder / VERIFIED_FILE, note.model_dump(by_alias=True, exclude_none=True))

    def unmark_verified(self, folder: Path) -> None:
        """Remove the note, because the folder did not pass."""
        with os_errors_as(f"removing {folder / VERIFIED_FILE}"):
            (folder / VERIFIED_FILE).unlink(missing_ok=True)

    def publish(self, dataset: Dataset) -> Path:
        """Let a complete dataset appear, in one rename."""
        work, folder = self.work(dataset), self.folder(dataset)
        with os_errors_as(f"moving {work} to {folder}"):
            move_into_place(work, folder)
        return folder

    def discard(self, dataset: Dataset) -> None:
        """Remove the folder of an unfinished dataset."""
        shutil.rmtree(self.work(dataset), ignore_errors=True)


def _read_note(folder: Path) -> VerifiedNote | None:
    try:
        return VerifiedNote.model_validate_json((folder / VERIFIED_FILE).read_bytes())
    except (OSError, ValidationError):
        return None
