"""Which images of a list cannot be decoded, checked on all cores.

They are decoded as training and prediction decode them. For small images that is mostly Python,
which threads would not speed up, so the work goes to processes. They start fast: this module and
what it imports know neither PyTorch nor NumPy.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from refiner_cli.data.decode import read
from refiner_cli.data.image_file import MissingFileError, UnreadableError, default_limits
from refiner_cli.data.progress import Notice, Progress, Report, StoppedError
from refiner_cli.data.workers import in_processes
from refiner_cli.errors import RefinerError
from refiner_cli.machine import semaphores_work

_CHUNK = 128
_WORTH_A_PROCESS = 1024  # images; fewer are decoded in the time that a process takes to start


@dataclass(frozen=True)
class UnreadableImage:
    """An image that is missing or cannot be decoded; ``path`` as it was given."""

    path: str
    reason: str
    missing: bool = False


Checked = tuple[int, list[UnreadableImage]]  # how many images a chunk has, and those that fail


def find_unreadable(
    folder: Path, paths: Sequence[str], *, name: str, workers: int, report: Report, stop: Event
) -> list[UnreadableImage]:
    """Decode every image completely and return those that fail, in the order given.

    More than one worker needs a main module that can be imported, as always with processes.
    Raises StoppedError when ``stop`` is set, and ConfigError for a decode limit that is not a number.
    """
    default_limits()  # a limit that is not a number is reported here, and not by every process
    if workers > 1 and len(paths) > _WORTH_A_PROCESS and not semaphores_work():
        report(Notice("Decoding in one process: others cannot start here, as there is no usable /dev/shm."))
        workers = 1
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
    try:
        yield from in_processes(_decode, chunks, workers)
    except BrokenExecutor as error:
        raise RefinerError(
            "A process that decodes images died: memory may be short, or an image crashes its decoder.",
            hint="Try again with --workers 1.",
        ) from error


def _decode(chunk: tuple[str, Sequence[str]]) -> Checked:
    folder, paths = chunk
    return len(paths), [fault for path in paths if (fault := _fault(folder, path))]


def _fault(folder: str, path: str) -> UnreadableImage | None:
    try:
        read(Path(folder, path))
    except UnreadableError as reason:
        return UnreadableImage(path, str(reason), missing=isinstance(reason, MissingFileError))
    return None
