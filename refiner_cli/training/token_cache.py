"""The token cache: activations of the frozen blocks, kept on disk for a few views of every image.

The activations below the adapters and the queries are constant for an image and its augmentation. With
``v`` views per image, epoch ``e`` uses view ``e mod v``, and once all are stored an epoch costs the
adapted blocks alone. A block of images is one file that is either complete or absent; its name carries
the checksum of its content, so that interrupted work resumes and a damaged file is made again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from refiner_cli.core.model_io.tensor_files import load_tensors_from, save_tensors
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import GIB, autocast
from refiner_cli.core.runtime.loader import ImageBatch, TrainTransform, load_batches
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.data.images import AUGMENTS
from refiner_cli.errors import RefinerError
from refiner_cli.files import atomic_file, sha256

IMAGES_PER_FILE = 64  # images of one file
DIGITS = 16  # of the checksum in its name


@runtime_checkable
class FrozenBlocksModel(Protocol):
    """A model that can stop after the blocks that training does not change, and start from there."""

    @property
    def first_trainable_block(self) -> int: ...
    def encode_frozen_blocks(self, images: Tensor) -> Tensor: ...


@dataclass
class TokenCache:
    """Tokens below all that training changes, for ``views`` views of every file.

    Args:
        folder: where the files lie; what it holds of another model or dataset is not used.
        key: whatever else decides the tokens: the dataset, the seed, the backbone.
        precision: what the tokens are computed and kept in.
        augment: how a view differs from the file, a name in ``AUGMENTS``.
    """

    folder: Path
    model: Model
    files: Sequence[Path]
    views: int
    seed: int
    key: str
    precision: torch.dtype
    augment: str = "published"
    workers: int = 0
    place: Path = field(init=False)
    found: dict[tuple[int, int], Path] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        backbone = self.model.backbone
        parts = (self.key, backbone.use_fingerprint(), str(backbone.spec.preprocess),
                 self.model.first_trainable_block, self.seed, str(self.precision), self.augment,
                 IMAGES_PER_FILE)  # fmt: skip
        self.place = self.folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def fill(self, log: LogFn) -> None:
        """Compute and store what is missing.

        Raises:
            RefinerError: the disk has no room for it.
            DatasetError: an image cannot be read.
        """
        wanted = self.blocks()
        self.place.mkdir(parents=True, exist_ok=True)
        self.found = {place: file for place in wanted if (file := self.valid_file(*place))}
        missing = [place for place in wanted if place not in self.found]
        images = sum(min(IMAGES_PER_FILE, len(self.files) - start) for _, start in missing)
        needed = images * self.bytes_per_image()
        free = shutil.disk_usage(self.place).free
        log(
            f"token cache {self.place}: {self.views} views of {len(self.files)} images, "
            f"{images} missing, {needed / GIB:.2f} GiB of {free / GIB:.1f} GiB free"
        )
        if needed > free:
            raise RefinerError(
                f"The token cache needs {needed / GIB:.2f} GiB; {self.place} has {free / GIB:.2f} GiB left.",
                hint="Lower train.cached_views, the number of views, or set it to 0.",
            )
        for view, start in missing:
            self.found[view, start] = self.write_block(view, start)

    def join(self, log: LogFn) -> None:
        """Take over what another process has just filled and checked; what cannot be seen here is made."""
        found = {place: next(self.files_of(*place), None) for place in self.blocks()}
        self.found = {place: file for place, file in found.items() if file}
        if len(self.found) < len(found):  # on another machine, with a folder of its own or a late view of it
            self.fill(log)

    def blocks(self) -> list[tuple[int, int]]:
        """View and first image of every file."""
        starts = range(0, len(self.files), IMAGES_PER_FILE)
        return [(view, start) for view in range(self.views) for start in starts]

    def files_of(self, view: int, start: int) -> Iterator[Path]:
        """The files that are there for a block."""
        return self.place.glob(f"{view:03d}-{start:08d}-*.safetensors")

    def bytes_per_image(self) -> int:
        """Size of one image's tokens, from one forward pass of a blank image."""
        blank = torch.zeros(1, 3, *self.model.backbone.image_size, device=self.model.device)
        return self.tokens(blank)[0].numel() * self.precision.itemsize

    def tokens(self, images: Tensor) -> Tensor:
        assert isinstance(self.model, FrozenBlocksModel)  # noqa: S101 - checked where the cache is made
        with autocast(self.model.device, self.precision):
            return self.model.encode_frozen_blocks(images).to(self.precision)

    def write_block(self, view: int, start: int) -> Path:
        """Compute one block of a view and write it whole."""
        rows = range(start, min(start + IMAGES_PER_FILE, len(self.files)))
        look = TrainTransform(AUGMENTS[self.augment](self.model.backbone.spec.preprocess), self.seed)
        keys = [view * len(self.files) + row for row in rows]
        (batch,) = load_batches(self.files, look, [keys], device=self.model.device, workers=self.workers)
        part = self.place / f"{view:03d}-{start:08d}.part"
        save_tensors({"tokens": self.tokens(batch.images).cpu().contiguous()}, part)
        file = self.place / f"{view:03d}-{start:08d}-{sha256(part)[:DIGITS]}.safetensors"
        with atomic_file(file) as target:
            part.replace(target)
        return file

    def valid_file(self, view: int, start: int) -> Path | None:
        """The file of a block, if its content is what its name promises; damaged ones are removed."""
        for file in [*self.files_of(view, start)]:
            if file.stem.endswith(sha256(file)[:DIGITS]):
                return file
            file.unlink()
        return None

    def batches(self, order: Sequence[Sequence[int]], epoch: int) -> Iterator[ImageBatch]:
        """The batches that ``order`` lists, tokens ``B x N x W`` in the place of images."""
        view = epoch % self.views
        starts = range(0, len(self.files), IMAGES_PER_FILE)
        # Memory-mapped: only the rows that a batch reads are loaded.
        blocks = {start: load_tensors_from(self.found[view, start])["tokens"] for start in starts}
        for rows in order:
            tokens = torch.stack([blocks[row - row % IMAGES_PER_FILE][row % IMAGES_PER_FILE] for row in rows])
            yield ImageBatch(tokens.to(self.model.device, non_blocking=True), torch.tensor(list(rows)))
