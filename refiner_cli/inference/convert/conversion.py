"""Convert predictions: the table of formats, and the one way through all of them."""

from __future__ import annotations

from pathlib import Path

from refiner_cli.data.create.photos import PhotoCollection
from refiner_cli.data.labels import Pair
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.files import atomic_file, atomic_folder
from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.cleanlab import CleanlabWriter
from refiner_cli.inference.convert.csv_table import CsvTableWriter
from refiner_cli.inference.convert.fiftyone import FiftyOneWriter
from refiner_cli.inference.convert.image_folder import ImageFolderWriter
from refiner_cli.inference.convert.label_studio import LabelStudioWriter
from refiner_cli.inference.convert.megadetector import MegaDetectorWriter
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions

WRITERS: dict[str, AnswerWriter] = {
    "label-studio": LabelStudioWriter(),
    "fiftyone": FiftyOneWriter(),
    "image-folder": ImageFolderWriter(),
    "csv": CsvTableWriter(),
    "cleanlab": CleanlabWriter(),
    "megadetector": MegaDetectorWriter(),
}


def check_target(writer: AnswerWriter, target: Path, answers: Answers) -> None:
    """Raise UsageError unless the writer's file or folder can be new, and lies in no folder of photos."""
    if writer.suffix and target.suffix.lower() != writer.suffix:
        raise UsageError(f"-o {target} does not end in {writer.suffix}.")
    is_empty_folder = target.is_dir() and not any(target.iterdir())
    if target.exists() and not (is_empty_folder and not writer.suffix):
        raise UsageError(f"{target} exists already.", hint="Choose another name, or remove it.")
    for folder in answers.places.folders():
        if not writer.suffix and target.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"-o {target} lies in the photo folder {folder}.",
                hint="Choose a folder outside of it, or its files would be photos the next time.",
            )


def convert_answers(
    answers: Answers, writer: AnswerWriter, target: Path, options: ConvertOptions
) -> Converted:
    """Write the answers; the file or folder appears complete, or not at all.

    Raises:
        DatasetError: the predictions are damaged, or none can be converted.
    """
    with atomic_file(target) if writer.suffix else atomic_folder(target) as part:
        made = writer.write(part, answers, options)
        if not made.images:
            raise DatasetError(
                f"{answers.file} holds no prediction that can be converted{count_reasons(answers)}."
            )
        if not writer.suffix and target.is_dir():
            target.rmdir()
    return made


def count_reasons(answers: Answers) -> str:
    """``" (3 below --min-probability)"``, or nothing."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in answers.left_out.items() if count)
    return f" ({reasons})" if reasons else ""


def labels_by_file(photos: PhotoCollection) -> dict[Path, Pair]:
    """What people said of each photo, by its resolved file."""
    return {photo.file.resolve(): photo.pair for photo in photos.photos}
