"""The files and folders that a prediction writes: none destroys another, and none is read as an input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refiner_cli.data.safe_paths import LONGEST_NAME, mark_output_folder
from refiner_cli.errors import UsageError
from refiner_cli.files import reason_of
from refiner_cli.inference.formats import format_of
from refiner_cli.inference.output import sidecar_of
from refiner_cli.inference.scan import row_name


@dataclass(frozen=True)
class Destinations:
    """Where rows, gallery, attention maps and the kept index go; None: not wanted."""

    rows: Path | None = None
    gallery: Path | None = None
    heatmaps: Path | None = None
    index: Path | None = None

    def all(self) -> list[Path]:
        """Every file and folder, the companions of the rows included."""
        found = [place for place in (self.rows, self.gallery, self.heatmaps, self.index) if place]
        return found + ([sidecar_of(self.rows)] if self.rows else [])

    def check(self, inputs: list[Path]) -> None:
        """Raise UsageError unless every place can be written without harm to another or to an input."""
        if self.rows:
            format_of(self.rows)
            if self.rows.is_dir():
                raise UsageError(f"The output {row_name(str(self.rows))} is a folder.")
            if len(self.rows.name.encode("utf-8", "surrogateescape")) > LONGEST_NAME - 24:
                raise UsageError("The name of the output is too long.", hint="Choose a shorter one.")
        taken: dict[Path, Path] = {}
        for place in self.all():
            key = place.resolve()
            if key in taken:
                raise UsageError(
                    f"Two outputs would be written to {row_name(str(place))}.", hint="Give each its own name."
                )
            taken[key] = place
        given = {place.resolve() for place in inputs}
        for key, place in taken.items():
            if key in given or (
                place in {self.heatmaps, self.index} and any(one.is_relative_to(key) for one in given)
            ):
                raise UsageError(
                    f"{row_name(str(place))} is an input and an output.", hint="Choose another output."
                )
        if self.heatmaps and self.heatmaps.exists() and not self.heatmaps.is_dir():
            raise UsageError(f"{row_name(str(self.heatmaps))} is not a folder.")

    def make_heatmap_folder(self) -> None:
        """Raise UsageError for a folder that holds other files."""
        if self.heatmaps:
            try:
                mark_output_folder(self.heatmaps)
            except (OSError, ValueError) as error:
                raise UsageError(
                    f"Attention maps cannot be written to {row_name(str(self.heatmaps))} "
                    f"({reason_of(error)}).",
                    hint="Choose a new or empty folder.",
                ) from None
