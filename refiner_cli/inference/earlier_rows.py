"""What the rows of earlier runs say about a file: whether its row stays, or the image is computed again."""

from __future__ import annotations

from dataclasses import dataclass, field

from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.scan import UNKNOWN_VERSION, FileVersion, name_digest


@dataclass
class EarlierRows:
    """What the rows of earlier runs say, without the rows."""

    versions: dict[bytes, int] = field(default_factory=dict)  # of every path; of the file it was made from
    errors: set[bytes] = field(default_factory=set)

    def add(self, row: RowDict) -> None:
        key = name_digest(row["path"])
        self.versions[key] = hash_version(FileVersion(row.get("size"), row.get("modified")))
        (self.errors.discard if row["status"] == "ok" else self.errors.add)(key)

    def cover(self, path: str, version: FileVersion, *, keep_errors: bool) -> bool:
        """Whether a row stays: it is a result, and the file is the one it was made from."""
        key = name_digest(path)
        made_from = self.versions.get(key)
        if made_from is None or (key in self.errors and not keep_errors):
            return False
        # A file that cannot be looked at now may be back tomorrow: its result is kept.
        return version == UNKNOWN_VERSION or made_from in (hash_version(version), NO_VERSION)


def hash_version(version: FileVersion) -> int:
    return int.from_bytes(name_digest(f"{version.size} {version.modified}")[:7], "big")


NO_VERSION = hash_version(UNKNOWN_VERSION)
