"""Any method's score matrix, read from an ``.npz`` file a few rows at a time.

::

    scores       N x P float32 (float64 and float16 are converted)
    truth        N integers, index of each image's true pair
    seen         P bool, whether training saw the pair
    pair_state   P integers, index of each pair's state
    pair_object  P integers, index of each pair's object
    allowed      P bool, the pairs that may compete; optional, absent: all
    states       S texts, names for the report; optional
    objects      O texts, likewise

``numpy.savez`` writes the matrix as it is, and then it is memory-mapped. The compressed form of
``numpy.savez_compressed`` is unpacked row by row. Neither is ever completely in memory.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from refiner_cli.data.labels import BoolArray, IntArray, LabelSpace
from refiner_cli.errors import ScoresError

BLOCK_BYTES = 1 << 26
LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: signature, lengths of its name and extra field
UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    MemoryError,  # a damaged header can ask for any size
)


@dataclass(frozen=True)
class ScoreFile:
    """An opened score file: everything but the matrix. Build it with :func:`open_scores`."""

    file: Path
    space: LabelSpace
    truth: IntArray  # N
    allowed: BoolArray | None  # P

    def __len__(self) -> int:
        return len(self.truth)

    def blocks(self) -> Iterator[tuple[npt.NDArray[np.floating[Any]], IntArray]]:
        """Consecutive rows of the matrix with their truths; can be read any number of times.

        Raises ScoresError where the file is damaged or was changed.
        """
        rows = max(BLOCK_BYTES // (4 * len(self.space.pairs)), 1)
        start = 0
        for block in _matrix_blocks(self.file, rows):
            yield block, self.truth[start : start + len(block)]
            start += len(block)


def open_scores(file: Path) -> ScoreFile:
    """Read and check all but the values of the matrix.

    Raises:
        ScoresError: an array is missing, has a wrong shape or type, or points outside another.
    """
    dtype, shape = _matrix_header(file)
    if len(shape) != 2 or 0 in shape:
        raise ScoresError(f"{file}: 'scores' has the shape {shape}; N x P is needed.")
    if dtype.kind != "f":
        raise ScoresError(f"{file}: 'scores' holds {dtype}; float32 is needed.")
    images, pairs = shape
    seen = _vector(file, "seen", pairs, "b")
    truth = _indices(file, "truth", images, pairs)
    states, state_names = _primitive_names(file, "pair_state", "states", pairs)
    objects, object_names = _primitive_names(file, "pair_object", "objects", pairs)
    _no_pair_twice(file, states, objects)
    allowed = _vector(file, "allowed", pairs, "b") if _has(file, "allowed") else None
    if allowed is not None and not allowed.any():
        raise ScoresError(f"{file}: 'allowed' lets no pair compete.")
    names = [(state_names[s], object_names[o]) for s, o in zip(states, objects, strict=True)]
    space = LabelSpace(
        state_names,
        object_names,
        tuple(names),
        frozenset(p for p, known in zip(names, seen, strict=True) if known),
    )
    return ScoreFile(file, space, truth, allowed)


def _archive(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except FileNotFoundError:
        raise ScoresError(f"The score file {file} does not exist.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise ScoresError(
            f"{file} is not an .npz file, or it is truncated ({error}).", hint="numpy.savez writes one."
        ) from None


def _has(file: Path, name: str) -> bool:
    with _archive(file) as archive:
        return f"{name}.npy" in archive.namelist()


def _member(file: Path, archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    try:
        return archive.open(f"{name}.npy")
    except KeyError:
        raise ScoresError(
            f"{file} holds no array '{name}'.",
            hint="scores, truth, seen, pair_state and pair_object are needed.",
        ) from None
    except UNREADABLE as error:  # encrypted, of an unknown compression, or damaged
        raise ScoresError(f"{file}: '{name}' cannot be read ({error}).") from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and type of the ``.npy`` that a stream begins with."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _matrix_header(file: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    with _archive(file) as archive, _member(file, archive, "scores") as stream:
        try:
            shape, _, dtype = _header(stream)
        except UNREADABLE as error:
            raise ScoresError(f"{file}: 'scores' cannot be read ({error}).") from None
    return dtype, shape


def _array(file: Path, name: str) -> npt.NDArray[Any]:
    with _archive(file) as archive, _member(file, archive, name) as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except UNREADABLE as error:
            raise ScoresError(f"{file}: '{name}' cannot be read ({error}).") from None


def _vector(file: Path, name: str, length: int, kinds: str) -> npt.NDArray[Any]:
    array = _array(file, name)
    if array.shape != (length,):
        raise ScoresError(f"{file}: '{name}' has the shape {array.shape}, but 'scores' needs ({length},).")
    if array.dtype.kind not in kinds:
        wanted = "bool" if kinds == "b" else "integers"
        raise ScoresError(f"{file}: '{name}' holds {array.dtype}; {wanted} are needed.")
    return array


def _indices(file: Path, name: str, length: int, limit: int | None) -> IntArray:
    array = _vector(file, name, length, "iu").astype(np.int64)
    outside = np.flatnonzero(
        (array < 0) | (array >= (limit if limit is not None else np.iinfo(np.int64).max))
    )
    if len(outside):
        place, value = int(outside[0]), int(array[outside[0]])
        raise ScoresError(
            f"{file}: {name}[{place}] is {value}; it must be in 0..{'' if limit is None else limit - 1}."
        )
    return array


def _primitive_names(file: Path, indices: str, names: str, length: int) -> tuple[IntArray, tuple[str, ...]]:
    """The state (object) of each pair, and the names of all: those of the file, or their numbers."""
    if not _has(file, names):
        array = _indices(file, indices, length, None)
        if array.max() >= length:
            place = int(array.argmax())
            raise ScoresError(
                f"{file}: {indices}[{place}] is {array[place]}, but there are only {length} pairs."
            )
        return array, tuple(str(i) for i in range(int(array.max()) + 1))
    listed = _array(file, names)
    if listed.ndim != 1 or listed.dtype.kind != "U" or len(set(listed.tolist())) != len(listed):
        raise ScoresError(f"{file}: '{names}' must be a list of distinct strings.")
    return _indices(file, indices, length, len(listed)), tuple(str(name) for name in listed)


def _no_pair_twice(file: Path, states: IntArray, objects: IntArray) -> None:
    code = states * (int(objects.max()) + 1) + objects
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[inverse] != np.arange(len(code)))
    if len(again):
        twice = int(again[0])
        raise ScoresError(
            f"{file}: the pairs {int(first[inverse[twice]])} and {twice} are the same: "
            f"state {states[twice]}, object {objects[twice]}."
        )


def _matrix_blocks(file: Path, rows: int) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """The matrix in blocks of at most ``rows`` rows."""
    with _archive(file) as archive, _member(file, archive, "scores") as stream:
        info = archive.getinfo("scores.npy")
        try:
            shape, fortran, dtype = _header(stream)
            if info.compress_type == zipfile.ZIP_STORED:
                offset = _data_offset(file, info) + stream.tell()
                matrix = np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")
                for start in range(0, shape[0], rows):
                    yield matrix[start : start + rows]
                return
            if fortran:
                raise ScoresError(
                    f"{file}: 'scores' is compressed and stored by columns.", hint="Save it C-contiguous."
                )
            width = shape[1] * dtype.itemsize
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                data = stream.read(count * width)
                yield np.frombuffer(data, dtype).reshape(count, shape[1])
        except UNREADABLE as error:
            raise ScoresError(f"{file}: 'scores' is truncated or damaged ({error}).") from None


def _data_offset(file: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin in the archive; its local header may differ from the central one."""
    with file.open("rb") as stream:
        stream.seek(info.header_offset)
        _, name, extra = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    return info.header_offset + LOCAL_HEADER.size + int(name) + int(extra)
