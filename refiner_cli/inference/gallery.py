"""A page to look through predictions, or images that were found: one file with thumbnails inside.

Nothing is loaded over the network.

The rows are data in the page; its script draws sixty cards at a time, so that the number of images
costs the browser memory but no time. A click on a thumbnail opens the photo where it lies. The right
state and object can be entered on a card; the page saves them as a table for ``refiner dataset create``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from refiner_cli.data.crop import Crop
from refiner_cli.inference.columns import RowDict
from refiner_cli.inference.decoding import decode_batches
from refiner_cli.inference.scan import ImageFile
from refiner_cli.render import data_url, write_page

THUMBNAIL = Crop(224, 224)  # at least as large as a card shows it
THUMBNAIL_QUALITY = 70
MAX_CARDS = 10_000  # images; a page of more would be too large for a browser
DECODED_AT_ONCE = 64


@dataclass
class Gallery:
    """The cards of a page while it is written, and how many there were."""

    page: Path
    rows: Iterator[RowDict]
    locate: Callable[[Sequence[str]], Iterator[ImageFile]]
    workers: int
    shown: int = 0

    def cards(self) -> Iterator[list[object]]:
        """A card per row, for the first rows: see :func:`card`."""
        first = list(islice(self.rows, MAX_CARDS))
        rows, images = iter(first), self.locate([row["path"] for row in first])
        for batch, results in decode_batches(images, DECODED_AT_ONCE, THUMBNAIL, self.workers):
            for queued, result in zip(batch.wanted, results, strict=True):
                self.shown += 1
                image = queued.image
                if isinstance(result, str):
                    yield card(next(rows), "", *without_photo(self.page, image))
                else:
                    picture = data_url(Image.fromarray(result), quality=THUMBNAIL_QUALITY)
                    yield card(next(rows), picture, photo_link(self.page, image), "")

    def count_omitted(self) -> int:
        """How many rows are left after the cards."""
        return sum(1 for _ in self.rows)


def write_gallery(
    file: Path,
    title: str,
    rows: Iterable[RowDict],
    locate: Callable[[Sequence[str]], Iterator[ImageFile]],
    *,
    workers: int,
    is_ranking: bool = False,
) -> int:
    """Write the page of some rows and return how many images it shows.

    Args:
        rows: as predictions are written; ``note``, if a row has one, is shown on its card.
        locate: the images of some rows, by their paths; one that no longer exists is shown without a
            thumbnail.
        workers: processes that decode.
        is_ranking: whether the order of the rows says something, so that the page starts with it.
    """
    gallery = Gallery(file, iter(rows), locate, workers)
    write_page(file, "inference/gallery.html", title=title, gallery=gallery, is_ranking=is_ranking)
    return gallery.shown


def without_photo(page: Path, image: ImageFile) -> tuple[str, str]:
    """Link to an image without a thumbnail, and what its card says instead."""
    if image.content is not None:
        return "", "cannot be read"
    try:
        exists = image.file.exists()
    except (OSError, ValueError):  # a name that no file can have
        exists = False
    return (link(page, image.file), "cannot be read") if exists else ("", "the file is gone")


def photo_link(page: Path, image: ImageFile) -> str:
    """The link to an image that is a file; "" for one in an archive or elsewhere."""
    return link(page, image.file) if image.content is None else ""


def link(page: Path, file: Path) -> str:
    """A relative URL from a page to a file; an absolute one across drives.

    The name's bytes are quoted, so that any name is possible and none can be taken for a scheme.
    """
    try:
        relative = Path(os.path.relpath(file.absolute(), page.absolute().parent))
    except ValueError:
        return file.absolute().as_uri()
    return quote(os.fsencode(relative.as_posix()))


def card(row: RowDict, picture: str, photo: str, missing: str) -> list[object]:
    """A row for the script: path, error, thumbnail, predictions, link to the photo, or why not, note,
    verdict, what it says.
    """
    predictions = [
        [one["state"], one["object"], round(one["probability"], 4), int(one["seen"])]
        for one in row["predictions"]
    ]
    error, note = row["error"] or "", row.get("note", "")
    verdict = row.get("verdict") or ""
    return [row["path"], error, picture, predictions, photo, missing, note, verdict, verdict_text(row)]


def verdict_text(row: RowDict) -> str:
    """What a row's verdict says, for the badge of its card; empty without one."""
    level = row.get("verdict")
    if level in {"object", "state"}:
        return f"{row[f'verdict_{level}']} ({level} only)"
    return {"pair": "sure", "unknown": "unknown"}.get(level or "", "")
