"""Sources that are one file of a store: an archive or a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from refiner_cli.data.safe_paths import relative
from refiner_cli.inference.scan import NO_FILTER, FileVersion, ImageFile, PathFilter, row_name
from refiner_cli.inference.sources.content import Content
from refiner_cli.inference.sources.source import PlaceSource, takes_member
from refiner_cli.inference.sources.store import Store


class StoredSource(PlaceSource):
    """The images in one file, or that it lists.

    Attributes:
        store: where the file lies.
    """

    def __init__(self, place: str, store: Store, chosen: PathFilter = NO_FILTER) -> None:
        super().__init__(place, chosen)
        self.store = store


class ArchiveSource(StoredSource):
    """The images of one archive, which is not unpacked; anybody may have named its members."""

    is_unit = True
    separators: ClassVar[str]  # what stands between folders in its members' names

    def member_image(
        self, stored: str, version: FileVersion, size: int, content: Callable[[], Content]
    ) -> ImageFile | None:
        """The entry of a member; None if it is not asked for.

        Args:
            stored: its name, as the archive has it.
            version: of the archive.
            size: of the member, in bytes.
            content: gives what it holds; called if it is asked for.
        """
        try:
            name = relative(stored)
        except ValueError as reason:
            shown = stored.strip(self.separators) or "?"
            return self.failed(row_name(shown), f"its name is {reason}") if self.chosen.takes(shown) else None
        if not takes_member(name, self.chosen):
            return None
        return ImageFile(Path(self.place, name), row_name(name), content(), replace(version, size=size),
                         shown=row_name(f"{self.place}/{name}"))  # fmt: skip
