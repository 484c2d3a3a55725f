"""A file that is not all there yet."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from refiner_cli.data.download.remote import HttpMetadata
from refiner_cli.files import write_json


class PartialDownload:
    """The bytes of a file so far, from one address, and the note of what they belong to."""

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        mirror = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.path = target.with_name(f"{target.name}.{mirror}.part")
        self.note = target.with_name(f"{target.name}.{mirror}.json")

    def remote(self) -> HttpMetadata | None:
        """What the bytes belong to; None if there are none, or nobody knows."""
        try:
            remote = HttpMetadata(**json.loads(self.note.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return remote if self.path.is_file() else None

    def start(self, remote: HttpMetadata) -> None:
        """Begin anew. The note comes first, so that no byte is ever taken for another file's."""
        self.drop()
        write_json(self.note, asdict(remote))
        self.path.touch()

    def size(self) -> int:
        return self.path.stat().st_size

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def drop_if_empty(self) -> None:
        if self.path.is_file() and not self.size():
            self.drop()

    def finish(self) -> None:
        with self.path.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.path.replace(self.target)
        self.note.unlink(missing_ok=True)
