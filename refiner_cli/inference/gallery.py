"""A page to look through predictions: one file, thumbnails inside, nothing fetched from anywhere.

The rows are data in the page; its script draws sixty cards at a time, so that the number of
images costs the browser memory but no time.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from importlib import resources
from itertools import islice, tee
from pathlib import Path

from PIL import Image

from refiner_cli.data.crop import Crop, Pixels
from refiner_cli.files import atomic_file
from refiner_cli.inference.decoding import decode_batches, make_batches
from refiner_cli.inference.formats import RowDict, read_rows
from refiner_cli.inference.scan import ImageFile

THUMBNAIL = Crop(112, 112)
QUALITY = 65
LIMIT = 20_000  # images; a page of more would be too large for a browser
GROUP = 64
ROWS = "/* rows */"  # what the template has in their place


def write_gallery(file: Path, output: Path, locate: Callable[[str], Path], *, workers: int) -> int:
    """Write the page for a finished output and return how many images it shows.

    Args:
        locate: the image file of a row's path; one that is gone is shown without a picture.
        workers: processes that decode.
    """
    page = resources.files("refiner_cli.inference").joinpath("gallery.html").read_text("utf-8")
    head, _, tail = page.partition(ROWS)
    shown = 0
    with atomic_file(file) as part, part.open("w", encoding="utf-8") as stream:
        stream.write(head)
        for value, picture in pictured(islice(read_rows(output), LIMIT), locate, workers):
            # "<" could end the script that the data stands in.
            text = json.dumps(card(value, picture), ensure_ascii=False, separators=(",", ":"))
            stream.write(("," if shown else "") + text.replace("<", "\\u003c") + "\n")
            shown += 1
        stream.write(tail)
    return shown


def pictured(
    values: Iterator[RowDict], locate: Callable[[str], Path], workers: int
) -> Iterator[tuple[RowDict, str]]:
    """Every row with its thumbnail as base64, empty where there is none."""
    rows, names = tee(values)
    found = (ImageFile(locate(value["path"]), value["path"]) for value in names)
    for _, outcomes in decode_batches(make_batches(found, GROUP), THUMBNAIL, workers):
        for outcome in outcomes:
            yield next(rows), "" if isinstance(outcome, str) else thumbnail(outcome)


def thumbnail(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()


def card(value: RowDict, picture: str) -> list[object]:
    """A row as the page's script takes it: path, error, picture, guesses of state, object, share, seen."""
    guesses = [
        [one["state"], one["object"], round(one["probability"], 4), int(one["seen"])]
        for one in value["predictions"]
    ]
    return [value["path"], value["error"] or "", picture, guesses]
