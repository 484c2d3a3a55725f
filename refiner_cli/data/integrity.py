"""Whether images can be decoded, by all cores.

Decoding small images is mostly Python, which threads would not speed up, so the work goes to
processes. They start light: this module and what it imports know neither torch nor numpy.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from PIL import Image

from refiner_cli.data.progress import Progress, Report, StoppedError
from refiner_cli.data.workers import init_worker
from refiner_cli.errors import RefinerError

_CHUNK = 128
_WORTH_A_PROCESS = 1024  # images; fewer are decoded in the time that a process takes to start


@dataclass(frozen=True)
class UnreadableImage:
    """An image that is not there or cannot be decoded; ``path`` as it was given."""

    path: str
    reason: str
    missing: bool = False


Checked = tuple[int, list["UnreadableImage"]]  # images of a chunk, and those of them that fail


def find_unreadable(
    folder: Path, paths: Sequence[str], *, name: str, workers: int, report: Report, stop: Event
) -> list[UnreadableImage]:
    """Decode every image completely and return those that fail, in the order given.

    More than one worker needs a main module that can be imported, as always with processes.
    Raises StoppedError when ``stop`` is set.
    """
    chunks = [(str(folder), paths[start : start + _CHUNK]) for start in range(0, len(paths), _CHUNK)]
    found: list[UnreadableImage] = []
    done = 0
    with closing(_results(chunks, min(workers, -(-len(paths) // _WORTH_A_PROCESS)))) as results:
        for count, bad in results:
            found += bad
            done += count
            report(Progress("verify", name, done, len(paths)))
            if stop.is_set():
                raise StoppedError
    return found


def _results(chunks: list[tuple[str, Sequence[str]]], workers: int) -> Generator[Checked, None, None]:
    if workers <= 1:
        yield from map(_decode, chunks)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=init_worker)
    try:
        yield from pool.map(_decode, chunks)
    except BrokenExecutor as error:
        raise RefinerError(
            "A process that decodes images died; the memory may be short, or an image may crash its decoder.",
            hint="Try again with one worker.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(chunk: tuple[str, Sequence[str]]) -> tuple[int, list[UnreadableImage]]:
    folder, paths = chunk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd EXIF data and the like are no fault of the picture
        return len(paths), [fault for path in paths if (fault := _fault(folder, path))]


def _fault(folder: str, path: str) -> UnreadableImage | None:
    try:
        with Image.open(os.path.join(folder, path)) as image:  # noqa: PTH118 - half of the time of a small image
            image.load()
    except FileNotFoundError:
        return UnreadableImage(path, "not there", missing=True)
    except Exception as error:  # noqa: BLE001 - decoders raise nearly everything for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UnreadableImage(path, reason.replace(os.path.join(folder, ""), ""))  # noqa: PTH118
    return None
