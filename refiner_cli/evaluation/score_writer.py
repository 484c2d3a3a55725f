"""Write the scores of an evaluation as the ``.npz`` that :mod:`refiner_cli.evaluation.score_files` reads.

The matrix is written batch by batch and is never in memory.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from refiner_cli.data.labels import BoolArray, LabelSpace
from refiner_cli.errors import RefinerError
from refiner_cli.files import atomic_file

ROW_TYPE = np.dtype("<f4")


class ScoreWriter:
    """Receives the scores of one world, image by image in order.

    A disk that fails does not end the evaluation: the error is raised by :meth:`finish`, after the numbers.
    """

    def __init__(self, file: Path, part: Path, images: int) -> None:
        self.file, self.images = file, images
        self.archive = zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True)
        self.stream: IO[bytes] | None = None
        self.arrays: dict[str, Any] = {}
        self.truth: list[np.ndarray[Any, Any]] = []
        self.problem: OSError | None = None

    def begin(self, space: LabelSpace, allowed: BoolArray | None) -> None:
        """Start the matrix: a column per pair of ``space``, in its order."""
        self.arrays = {
            "seen": space.seen, "pair_state": space.pair_state, "pair_object": space.pair_object,
            "states": np.array(space.states), "objects": np.array(space.objects),
            **({} if allowed is None else {"allowed": allowed}),
        }  # fmt: skip
        self.stream = self.archive.open("scores.npy", "w", force_zip64=True)
        shape = (self.images, len(space.pairs))
        header = {"descr": ROW_TYPE.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.stream, header)

    def update(self, scores: torch.Tensor, truth: torch.Tensor) -> None:
        """Add ``B x P`` scores and the ``B`` indices of the true pairs."""
        self.truth.append(truth.cpu().numpy())
        if self.problem is None and self.stream is not None:
            try:
                self.stream.write(scores.float().cpu().numpy().astype(ROW_TYPE).tobytes())
            except OSError as error:
                self.problem = error

    def finish(self) -> None:
        """Complete the file. Raises RefinerError if a part of it could not be written."""
        try:
            if self.problem is not None:
                raise self.problem
            if self.stream is not None:
                self.stream.close()
            for name, array in {**self.arrays, "truth": np.concatenate(self.truth)}.items():
                with self.archive.open(f"{name}.npy", "w") as stream:
                    np.lib.format.write_array(stream, array, allow_pickle=False)
            self.archive.close()
        except OSError as error:
            raise RefinerError(
                f"The scores cannot be written to {self.file} ({error.strerror or error}).",
                hint="Free some space, and evaluate again with --save-scores.",
            ) from None

    def give_up(self) -> None:
        """Let go of what was written."""
        with contextlib.suppress(OSError, ValueError):
            if self.stream is not None:
                self.stream.close()
        with contextlib.suppress(OSError, ValueError):
            self.archive.close()


@contextlib.contextmanager
def write_scores(file: Path, images: int) -> Iterator[ScoreWriter]:
    """A writer whose file appears at the end of the block; after an error there is none."""
    with atomic_file(file) as part:
        writer = ScoreWriter(file, part, images)
        try:
            yield writer
            writer.finish()
        finally:
            writer.give_up()
