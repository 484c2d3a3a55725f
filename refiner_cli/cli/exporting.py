"""The work of ``refiner export``: safetensors or ONNX, into a folder, onto the Hub, or both."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from refiner_cli.cli.common import open_model
from refiner_cli.cli.console import terminal
from refiner_cli.cli.outputs import check_output_folder
from refiner_cli.errors import InputError, UsageError
from refiner_cli.files import reason_of
from refiner_cli.printable import quoted

if TYPE_CHECKING:
    from refiner_cli.core.model_io.card import CardFacts, EvaluationFigures
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.core.model_io.onnx_export import CheckImages
    from refiner_cli.core.models.base import Model

MAX_EVALUATION_BYTES = 2**28
CHECKED_IMAGES = 64  # that an ONNX export is compared with the model on
ONNX_DTYPES = ("fp32", "int8")


@dataclass(frozen=True)
class ExportRequest:
    """What the command line says."""

    run: Path
    folder: Path | None
    kind: Literal["safetensors", "onnx"]
    dtype: Literal["fp32", "fp16", "bf16", "int8"]
    with_backbone: bool
    world: Literal["closed", "open"]
    states: Path | None
    objects: Path | None
    pairs: Path | None
    check_images: Path | None
    push: str | None
    private: bool
    evaluation: Path | None

    def check(self) -> None:
        """Raise UsageError for options that exclude or need each other."""
        if self.folder is None and self.push is None:
            raise UsageError("There is no place to export to.", hint="Name a folder, or --push OWNER/NAME.")
        if self.private and self.push is None:
            raise UsageError("--private needs --push.")
        if self.kind == "onnx":
            if self.dtype not in ONNX_DTYPES:
                raise UsageError(f"--dtype {self.dtype} is not for ONNX.", hint="Use fp32 or int8.")
            if not self.with_backbone:
                raise UsageError("An ONNX export has the image tower in it: --no-backbone is not for ONNX.")
            return
        if self.dtype == "int8":
            raise UsageError("--dtype int8 is for ONNX.", hint="Add --format onnx.")
        own = {"--world open": self.world == "open", "--states": self.states, "--objects": self.objects,
               "--pairs": self.pairs, "--check-images": self.check_images}  # fmt: skip
        if given := [option for option, value in own.items() if value]:
            raise UsageError(f"{given[0]} is for ONNX.", hint="Add --format onnx.")


def run_export(request: ExportRequest, *, as_json: bool) -> None:
    """Export, upload, report."""
    request.check()
    from refiner_cli.core.model_io.export import require_absent
    from refiner_cli.core.model_io.hub import HubName, open_repository, push_folder
    from refiner_cli.core.model_io.onnx_model import OnnxModel

    if request.folder is not None:
        require_absent(request.folder)
        check_output_folder("DIR", request.folder)
    figures = read_evaluation(request.evaluation) if request.evaluation else None
    name = HubName.parse(request.push) if request.push else None
    model, info = open_model(request.run, "cpu")
    if isinstance(model, OnnxModel):
        raise UsageError(f"{request.run} is an ONNX export already.", hint="Export the run it was made from.")
    if figures:
        check_same_model(figures, model, request)
    if name:  # a token that is refused is better known before the work
        open_repository(name, private=request.private)
    facts = card_facts(info, str(name or "."), figures)
    result: dict[str, Any] = {"schema": "refiner.export/1"}
    with ExitStack() as stack:
        place = request.folder or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
        made = write_onnx if request.kind == "onnx" else write_safetensors
        result |= {"folder": str(request.folder) if request.folder else None}
        result |= made(request, place, model, info, facts)
        if name:
            terminal.note(f"uploading {result['bytes'] / 1e6:.1f} MB to {name}")
            result |= {"repository": name.repository, "commit": push_folder(place, name)}
    if as_json:
        terminal.json(result)
        return
    if request.folder:
        terminal.data(f"{request.folder} ({result['bytes'] / 1e6:.1f} MB)")
    if name:
        terminal.data(f"{name}@{result['commit']}")
    terminal.next("refiner", "predict", request.folder or str(name), "PHOTOS", "-o", "rows.csv")


def write_safetensors(
    request: ExportRequest, place: Path, model: Model, info: ModelInfo, facts: CardFacts
) -> dict[str, Any]:
    """Write the folder; how large it is."""
    from refiner_cli.core.model_io.export import export_model

    size = export_model(
        place, model, info, dtype=request.dtype, with_backbone=request.with_backbone, facts=facts
    )
    return {"bytes": size}


def write_onnx(
    request: ExportRequest, place: Path, model: Model, info: ModelInfo, facts: CardFacts
) -> dict[str, Any]:
    """Write the folder; how large it is, and how far it is from the model."""
    from refiner_cli.core.model_io.onnx_export import agreement_sentence, export_onnx
    from refiner_cli.core.model_io.onnx_files import OnnxPrecision
    from refiner_cli.inference.vocabulary import choose_space

    space = choose_space(
        model.space, request.world, request.states, request.objects, request.pairs, terminal.note
    )
    check = images_to_check(request, model, info)
    size, agreement = export_onnx(
        place, model, info, space, precision=cast("OnnxPrecision", request.dtype), check=check, facts=facts
    )
    terminal.note(agreement_sentence(agreement))
    return {"bytes": size, "agreement": agreement.model_dump()}


def images_to_check(request: ExportRequest, model: Model, info: ModelInfo) -> CheckImages:
    """Images for the comparison: the given ones, those of the test split if it is there, or drawn ones."""
    import numpy as np
    import torch

    from refiner_cli.core.model_io.onnx_export import CheckImages
    from refiner_cli.data.benchmark import load_benchmark
    from refiner_cli.data.images import Preprocess, decode
    from refiner_cli.demo import scenes
    from refiner_cli.errors import DatasetError

    preprocess = Preprocess(model.backbone.spec.preprocess)
    files: list[Path] = []
    source = ""
    if request.check_images:
        files = image_files(request.check_images)
        source = f"of {request.check_images}"
    elif info.dataset_path and Path(info.dataset_path).is_dir():
        try:
            benchmark = load_benchmark(Path(info.dataset_path))
            files = list(benchmark.paths("test") if benchmark.samples["test"] else benchmark.paths("train"))
            source = f"of {benchmark.name}"
        except DatasetError:
            files = []
    if files:
        chosen = [
            files[i] for i in np.linspace(0, len(files) - 1, min(len(files), CHECKED_IMAGES)).astype(int)
        ]
        return CheckImages(torch.stack([preprocess(decode(file)) for file in chosen]), source)
    chance, every = np.random.default_rng(0), [("striped", "shirt"), ("sliced", "apple"), ("rusty", "key")]
    drawn = [scenes.scene(every[i % len(every)], every, chance) for i in range(CHECKED_IMAGES)]
    return CheckImages(torch.stack([preprocess(image) for image in drawn]), "drawn")


def image_files(folder: Path) -> list[Path]:
    """The images below a folder. Raises InputError if it is missing, UsageError if it holds none."""
    from refiner_cli.data.image_file import IMAGE_SUFFIXES

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.")
    found = sorted(
        file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
    )
    if not found:
        raise UsageError(f"There is no image in {folder}.")
    return found


def card_facts(info: ModelInfo, place: str, figures: EvaluationFigures | None) -> CardFacts:
    """What the card says besides what the model knows."""
    from refiner_cli.core.model_io.card import UNKNOWN_LICENCE, CardFacts

    return CardFacts(place, licence_of_data(info) or UNKNOWN_LICENCE, figures)


def licence_of_data(info: ModelInfo) -> str:
    """The licence of a catalogue dataset, or a sentence on the file that lies beside the data; else empty."""
    from refiner_cli.data.download.catalog_files import load_catalogue
    from refiner_cli.data.paths import home

    entry = load_catalogue(home(os.environ).root).datasets.get(info.dataset)
    if entry:
        return entry.licence
    for name in ("LICENSE", "LICENSE.txt", "LICENCE"):
        file = Path(info.dataset_path) / name
        if info.dataset_path and file.is_file():
            lines = file.read_text("utf-8", "replace").split("\n")
            return next((line.strip().replace("|", "/") for line in lines if line.strip()), "")
    return ""


def read_evaluation(file: Path) -> EvaluationFigures:
    """The figures that ``refiner eval --json`` printed. Raises InputError for anything else."""
    from pydantic import ValidationError

    from refiner_cli.core.model_io.card import EvaluationFigures

    try:
        if file.stat().st_size > MAX_EVALUATION_BYTES:
            raise ValueError("it is too large")
        return EvaluationFigures.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}".removeprefix(": ")
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    raise InputError(
        f"{file} is not the output of 'refiner eval --json' ({reason}).",
        hint=f"Make it with: refiner eval RUN --json > {quoted(file)}",
    )


def check_same_model(figures: EvaluationFigures, model: Model, request: ExportRequest) -> None:
    """Raise InputError for figures of a model that was calibrated in another way: it is another one."""
    own = json.loads(json.dumps(model.calibration.to_json()))  # with lists in the place of tuples
    if figures.calibration not in (None, own):
        raise InputError(
            f"The figures in {request.evaluation} are not of {request.run}: its calibration is another one.",
            hint=f"Evaluate it again: refiner eval {quoted(request.run)} --json",
        )
