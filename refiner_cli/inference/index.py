"""An index: what prediction computes of every image, kept on disk.

::

    index.json                      the model, its preprocessing, and the list of parts
    parts/00000012-3f9c.parquet     one row per image: path, size, modified, status, error
    parts/00000012-3f9c.safetensors its vectors, float16, one row per row of the table

A part holds a fixed number of images at most. It counts once ``index.json`` lists it, and that file is
replaced atomically, so that a process killed at any moment loses at most the part it was writing.

Shapes: ``N`` images of a part, ``D`` joint width.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from refiner_cli.core.model_io.tensor_files import load_tensors_from, save_tensors
from refiner_cli.core.models.base import ImageVectors
from refiner_cli.errors import ModelFileError, UsageError
from refiner_cli.files import atomic_file, reason_of, write_json
from refiner_cli.printable import quoted

INDEX_SCHEMA = "refiner.index/1"
FILE, PARTS, LOCK = "index.json", "parts", ".lock"
PART_SIZE = 4096  # images
COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)


class PartInfo(BaseModel):
    """One part as index.json lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[0-9]{8}-[0-9a-f]{8}$")
    images: int = Field(ge=0)
    errors: int = Field(ge=0)


class IndexInfo(BaseModel):
    """The content of index.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    schema_name: str = Field(alias="schema")
    model: dict[str, str]  # fingerprints of what decides the vectors
    method: str
    roles: list[str]  # which vectors are kept
    width: int = Field(ge=1, le=65536)  # D
    places: list[str]  # where the images come from
    part_size: int = Field(ge=1)
    next_part: int = Field(ge=0)
    parts: list[PartInfo]

    @classmethod
    def empty(
        cls, model: Mapping[str, str], method: str, roles: Sequence[str], width: int, places: Sequence[str],
        part_size: int = PART_SIZE,
    ) -> IndexInfo:  # fmt: skip
        """That of an index without images."""
        return cls(
            schema=INDEX_SCHEMA, model=dict(model), method=method, roles=list(roles), width=width,
            places=list(places), part_size=part_size, next_part=0, parts=[],
        )  # fmt: skip


@dataclass(frozen=True)
class IndexRow:
    """One image of an index."""

    path: str
    size: int | None  # bytes
    modified: str | None  # UTC, ISO 8601
    status: str  # ok or error
    error: str | None = None


@dataclass
class Index:
    """An index directory."""

    folder: Path
    info: IndexInfo

    @classmethod
    def create(cls, folder: Path, info: IndexInfo) -> Index:
        """An empty index. Raises UsageError if the folder holds something else."""
        if folder.exists() and not (folder.is_dir() and all(map(_is_beginning, folder.iterdir()))):
            raise UsageError(
                f"{folder} exists already and is not an index.", hint="Choose another folder for the index."
            )
        try:
            (folder / PARTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(folder, error) from None
        index = cls(folder, info)
        index.save()
        return index

    @classmethod
    def open(cls, folder: Path) -> Index:
        """Raises ModelFileError if the index is missing or damaged."""
        file = folder / FILE
        try:
            content = json.loads(file.read_text("utf-8"))
            if not isinstance(content, dict) or content.get("schema") != INDEX_SCHEMA:
                raise ModelFileError(f"{file} is not an index that this version reads ({INDEX_SCHEMA}).")
            info = IndexInfo.model_validate(content)
        except FileNotFoundError:
            if folder.is_dir():
                raise ModelFileError(f"{folder} is not an index: the file {FILE} is missing.") from None
            raise ModelFileError(
                f"There is no index at {folder}.",
                hint=f"Make one: refiner index MODEL PHOTOS -o {quoted(folder)}",
            ) from None
        except (OSError, ValueError, ValidationError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"The index file {file} is damaged ({reason}).") from None
        return cls(folder, info)

    @property
    def images(self) -> int:
        return sum(part.images for part in self.info.parts)

    @property
    def errors(self) -> int:
        return sum(part.errors for part in self.info.parts)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the index for writing, as it is now: another process may have changed it since it was opened.

        Raises:
            UsageError: another process holds it, or it cannot be written.
            ModelFileError: it was damaged meanwhile.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(f"Another process is writing the index {self.folder}.") from None
        except OSError as error:
            raise _cannot_write(self.folder, error) from None
        try:
            self.info = Index.open(self.folder).info
            yield
        finally:
            lock.release()

    def save(self) -> None:
        write_json(self.folder / FILE, self.info.model_dump(by_alias=True))

    def sweep(self) -> None:
        """Remove the files of parts that index.json does not list: a killed process leaves them."""
        listed = {part.name for part in self.info.parts}
        for file in (self.folder / PARTS).iterdir():
            if file.stem not in listed or file.name.startswith("."):
                file.unlink()
        for file in self.folder.glob(f".{FILE}.*.tmp"):
            file.unlink()

    def replace(
        self, old: Sequence[PartInfo], rows: Sequence[IndexRow], vectors: Mapping[str, Tensor]
    ) -> PartInfo | None:
        """Write a part (none if there are no rows) in place of ``old`` ones, make it count, and return it."""
        info, new = self.info, list[PartInfo]()
        if rows:
            part = PartInfo(
                name=f"{info.next_part:08d}-{secrets.token_hex(4)}", images=len(rows),
                errors=sum(row.status != "ok" for row in rows),
            )  # fmt: skip
            self.write_part(part, rows, vectors)
            new, info.next_part = [part], info.next_part + 1
        info.parts = [part for part in info.parts if part not in old] + new
        self.save()
        for part in old:
            for suffix in ("parquet", "safetensors"):
                self._file(part, suffix).unlink(missing_ok=True)
        return new[0] if new else None

    def write_part(self, part: PartInfo, rows: Sequence[IndexRow], vectors: Mapping[str, Tensor]) -> None:
        """Write the files of a part; it counts once index.json lists it."""
        half = {role: vectors[role].to("cpu", torch.float16).contiguous() for role in self.info.roles}
        with atomic_file(self._file(part, "safetensors")) as file:
            save_tensors(half, file)
        with atomic_file(self._file(part, "parquet")) as file:
            table = pa.Table.from_pylist([asdict(row) for row in rows], COLUMNS)
            with file.open("wb") as stream:  # pyarrow opens no path that is not UTF-8
                pq.write_table(table, stream)

    def rows(self, part: PartInfo, places: Sequence[int] | None = None) -> list[IndexRow]:
        """The images of a part, or some. Raises ModelFileError if its table is missing or torn."""
        table = self._table(part)
        return [IndexRow(**row) for row in (table if places is None else table.take(places)).to_pylist()]

    def paths(self, part: PartInfo, places: Sequence[int] | None = None) -> list[str]:
        """The paths of the images of a part, or of some. Raises ModelFileError as :meth:`rows`."""
        column = self._table(part, "path").column("path")
        found: list[str] = (column if places is None else column.take(places)).to_pylist()
        return found

    def readable(self, part: PartInfo) -> Tensor:
        """Which images of a part have vectors, ``N`` bool."""
        if not part.errors:
            return torch.ones(part.images, dtype=torch.bool)
        return torch.tensor([status == "ok" for status in self._table(part, "status")["status"].to_pylist()])

    def _table(self, part: PartInfo, *columns: str) -> pa.Table:
        file = self._file(part, "parquet")
        try:
            with file.open("rb") as stream:
                found = pq.read_table(stream, schema=COLUMNS, columns=list(columns) or None)
        except FileNotFoundError:
            raise self._missing(file) from None
        except (OSError, pa.ArrowException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError(
                f"The index part {file} is damaged ({reason}).", hint=self._advice()
            ) from None
        if len(found) != part.images:
            raise ModelFileError(
                f"The index part {file} holds {len(found)} images instead of {part.images}.",
                hint=self._advice(),
            )
        return found

    def vectors(self, part: PartInfo) -> ImageVectors:
        """The vectors of a part, float16, memory-mapped. Raises ModelFileError if missing or torn."""
        file = self._file(part, "safetensors")
        try:
            stored = load_tensors_from(file)
            found = {role: stored[role] for role in self.info.roles}
        except FileNotFoundError:
            raise self._missing(file) from None
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelFileError(
                f"The vectors {file} are damaged or cut short ({error}).", hint=self._advice()
            ) from None
        wanted = (part.images, self.info.width)
        for role, tensor in found.items():
            if tuple(tensor.shape) != wanted or tensor.dtype != torch.float16:
                raise ModelFileError(f"The vectors {file} do not fit the index at {role!r}.")
        composition = found["composition"]
        return ImageVectors(composition, found.get("state", composition), found.get("object", composition))

    def _file(self, part: PartInfo, suffix: str) -> Path:
        return self.folder / PARTS / f"{part.name}.{suffix}"

    def _missing(self, file: Path) -> ModelFileError:
        with suppress(ModelFileError):
            if Index.open(self.folder).info.parts != self.info.parts:
                said = f"The index {self.folder} was changed by another process while it was read."
                return ModelFileError(said, hint="Run the same command again.")
        return ModelFileError(f"The index part {file} is missing.", hint=self._advice())

    @staticmethod
    def _advice() -> str:
        return "Delete the index folder and run 'refiner index' again."


def is_index(path: Path) -> bool:
    """Whether an index lies there."""
    return (path / FILE).is_file()


def _is_beginning(entry: Path) -> bool:
    """Whether a process that was killed before it wrote index.json may have left this in the folder."""
    if entry.name == PARTS:
        return entry.is_dir() and not any(entry.iterdir())
    return entry.name == LOCK or (entry.name.startswith(f".{FILE}.") and entry.suffix == ".tmp")


def _cannot_write(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"The index {folder} cannot be written ({reason_of(error)}).",
        hint="Choose another folder, or make it writable.",
    )
