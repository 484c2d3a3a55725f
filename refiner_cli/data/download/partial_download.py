"""A partially downloaded file: its bytes so far, and a note of what they belong to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from refiner_cli.data.download.http import HttpMetadata
from refiner_cli.files import move_into_place, write_json


class PartialDownload:
    """The bytes of a file from one address, in ``FILE.MIRROR.part``, and ``FILE.MIRROR.json``."""

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        mirror = hashlib.sha256(url.encode()).hexdigest()[:8]
        self.path = target.with_name(f"{target.name}.{mirror}.part")
        self.note = target.with_name(f"{target.name}.{mirror}.json")

    def remote(self) -> HttpMetadata | None:
        """What the bytes belong to; None if there are none, or the note does not say."""
        try:
            remote = HttpMetadata.model_validate_json(self.note.read_bytes())
        except (OSError, ValidationError):
            return None
        return remote if remote.url == self.url and self.path.is_file() else None

    def start(self, remote: HttpMetadata) -> None:
        """Start again. The note comes first, so that no byte is ever taken for another file's."""
        self.discard()
        write_json(self.note, remote.model_dump())
        self.path.touch()

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        if not self.size():
            self.discard()

    def finish(self) -> None:
        """Move the complete file to its target."""
        move_into_place(self.path, self.target)
        self.note.unlink(missing_ok=True)
