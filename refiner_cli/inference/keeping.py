"""Predict from images and keep an index of them in the same pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from refiner_cli.inference.decoding import Wanted
from refiner_cli.inference.formats import ImageRow
from refiner_cli.inference.index import Index
from refiner_cli.inference.index_update import IndexUpdate
from refiner_cli.inference.indexing import encoded_image, split_vectors
from refiner_cli.inference.output import Header, IsGone
from refiner_cli.inference.predict import compute_batches, image_row
from refiner_cli.inference.recogniser import Prediction
from refiner_cli.inference.runner import ImageSource
from refiner_cli.inference.scan import FileVersion, ImageFile


@dataclass(frozen=True)
class KeepingSource:
    """Rows of images that are read now, whose vectors are kept in an index that the caller has locked.

    An image is read if its row is missing or if the index lacks it. Rows come as soon as they are computed,
    and the index is complete once all of them were taken.
    """

    images: ImageSource
    index: Index

    @property
    def folder(self) -> Path | None:
        return self.images.folder

    def header(self) -> Header:
        return self.images.header()

    def gone(self) -> IsGone | None:
        return self.images.gone()

    def locate(self, names: Sequence[str]) -> Iterator[ImageFile]:
        return self.images.locate(names)

    def rows(self, wanted: Wanted, batch: int) -> Iterator[ImageRow]:
        recogniser, options = self.images.recogniser, self.images.options
        update, needs = IndexUpdate(self.index), Needs(wanted)

        def compute(part: Tensor) -> list[tuple[Prediction, dict[str, Tensor]]]:
            vectors = recogniser.encode(part)
            made = recogniser.predict_vectors(vectors, top_k=options.top_k)
            return list(zip(made, split_vectors(vectors, self.index.info.roles), strict=True))

        for queued, pixels, made in compute_batches(
            recogniser, self.images.images, compute, batch=batch, workers=options.workers,
            wanted=lambda *image: needs.note(update, *image), log=self.images.log,
        ):  # fmt: skip
            row, vectors = needs.take(queued.image)
            if vectors:
                update.take(encoded_image(queued, pixels, made[1] if made else None, self.index.info))
            if row:
                yield image_row(queued, pixels, made[0] if made else None)
        update.finish(self.images.places.out_of_reach)


@dataclass
class Needs:
    """What the images that are on their way are needed for."""

    row_wanted: Wanted
    noted: dict[str, tuple[bool, bool]] = field(default_factory=dict)  # by name: for a row, for the index

    def note(self, update: IndexUpdate, image: ImageFile, version: FileVersion) -> bool:
        """Whether an image is needed at all."""
        need = (self.row_wanted(image, version), update.wanted(image, version))
        if any(need):
            self.noted[image.name] = need
        return any(need)

    def take(self, image: ImageFile) -> tuple[bool, bool]:
        return self.noted.pop(image.name)
