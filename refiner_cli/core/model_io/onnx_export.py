"""Export to ONNX: the image tower with all learned parts, and the scoring, as graphs without PyTorch.

Both graphs are traced from the :class:`~refiner_cli.core.models.base.Model` interface, so that a method
which computes its vectors or scores in another way needs nothing here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli._version import __version__
from refiner_cli.core.model_io.card import CardFacts
from refiner_cli.core.model_io.checkpoint import ModelInfo, defined_metrics
from refiner_cli.core.model_io.export import require_absent, size_of, write_card
from refiner_cli.core.model_io.onnx_files import (
    BANK_TENSORS,
    IMAGE_FILE,
    ROLES_OF_VECTORS,
    SCORES_FILE,
    TEXT_FILE,
    Agreement,
    OnnxPrecision,
    require_package,
)
from refiner_cli.core.model_io.onnx_model import OnnxModel
from refiner_cli.core.model_io.onnx_quantize import graph_files, quantize
from refiner_cli.core.model_io.schema import CONFIG, ONNX_FORMAT
from refiner_cli.core.model_io.stored_json import write_stored
from refiner_cli.core.models.base import ImageVectors, Model, TextBank
from refiner_cli.core.models.shifted_views import SHIFTS, shifted_view
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.core.towers.library_messages import first_line, quiet_libraries
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import RefinerError, UsageError
from refiner_cli.files import atomic_folder, sha256

MAX_PAIRS = 1 << 16
# Scores are logits: a difference of 0.01 changes a probability by at most a quarter of a percent point.
ALLOWED_DIFFERENCE: dict[OnnxPrecision, float] = {"fp32": 0.01, "int8": 1.0}
ALLOWED_CHANGED: dict[OnnxPrecision, float] = {"fp32": 0.01, "int8": 0.10}


@dataclass(frozen=True)
class CheckImages:
    """Images that an export is compared with the model on."""

    pixels: Tensor  # N x 3 x H x W, preprocessed
    source: str  # where they come from


def export_onnx(
    folder: Path,
    model: Model,
    info: ModelInfo,
    space: LabelSpace,
    *,
    precision: OnnxPrecision,
    check: CheckImages,
    facts: CardFacts,
) -> tuple[int, Agreement]:
    """Write ``folder``, which must not exist, if the export agrees with the model.

    Args:
        space: the pairs that it recognises.
        precision: "fp32", or "int8" for weights of eight bits in the image tower.

    Returns:
        Bytes written, and how far the export is from the model.

    Raises:
        UsageError: the method does not score from vectors, or there are too many pairs.
        EnvironmentLacksError: a package is missing.
        RefinerError: the export differs from the model by more than is allowed, or cannot be made.
    """
    require_absent(folder)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, "The export to ONNX")
    if not model.scores_from_vectors:
        raise UsageError(
            f"The method {info.method} scores against the patches of each image; an ONNX export has vectors."
        )
    if len(space.pairs) > MAX_PAIRS:
        raise UsageError(f"An ONNX export holds {MAX_PAIRS:,} pairs at most, not {len(space.pairs):,}.")
    bank = text_bank(model, space)
    with atomic_folder(folder) as part:
        with fixed_scale(model.eval()):
            trace_image_side(model, part / IMAGE_FILE)
            trace_scores(model, bank, part / SCORES_FILE)
        if precision == "int8":
            quantize(part / IMAGE_FILE)
        arrays: dict[str, Any] = {name: value.numpy() for name, value in bank_tensors(bank).items()}
        np.savez(part / TEXT_FILE, **arrays)
        config = onnx_config(model, info, bank, precision)
        agreement = require_agreement(model, bank, OnnxModel.from_config(part, config), precision, check)
        write_stored(part / CONFIG, {**config, "agreement": agreement.model_dump()})
        facts = dataclasses.replace(
            facts,
            kind="onnx",
            space=space,
            weights=f"{agreement_sentence(agreement)}\nThe weights of the image tower are {precision}.",
            hashes={
                file.name: sha256(file)
                for name in (IMAGE_FILE, SCORES_FILE, TEXT_FILE)
                for file in graph_files(part / name)
            },
        )
        write_card(part, model, info, facts)
    return size_of(folder), agreement


@torch.no_grad()
def text_bank(model: Model, space: LabelSpace) -> TextBank:
    """The text vectors of the pairs that an export recognises."""
    return model.eval().text_bank(space)


def bank_tensors(bank: TextBank) -> dict[str, Tensor]:
    """The tensors that a bank has, by name."""
    found = {name: getattr(bank, name) for name in BANK_TENSORS}
    return {name: value for name, value in found.items() if value is not None}


class ImageSide(nn.Module):
    """``B x 3 x H x W`` -> a vector per role.

    The shifted views are one batch: were each encoded apart, the graph would hold the tower once for each of
    them, and weights that several operations share are not stored in eight bits.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, count = self.model, self.model.calibration.tta_shifts
        patch = model.backbone.visual.patch_size
        vectors = model.encode_images(
            torch.cat([shifted_view(images, patch, shift) for shift in SHIFTS[count]])
        )
        if count == 1:
            return vectors.composition, vectors.state, vectors.object
        composition, state, obj = (
            F.normalize(getattr(vectors, role).unflatten(0, (count, -1)).sum(0), dim=-1)
            for role in ROLES_OF_VECTORS
        )
        return composition, state, obj


class ScoreSide(nn.Module):
    """A vector per role, and the tensors of a bank -> scores ``B x P``."""

    def __init__(self, model: Model, bank: TextBank) -> None:
        super().__init__()
        self.model, self.space = model, bank.space
        self.names = list(bank_tensors(bank))

    def forward(self, composition: Tensor, state: Tensor, obj: Tensor, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        bank = TextBank(self.space, **{name: given.get(name) for name in BANK_TENSORS})  # type: ignore[arg-type]
        scores = self.model.corrected_scores(ImageVectors(composition, state, obj), bank)
        return self.model.combine(scores, self.space)


@dataclass(frozen=True)
class FixedScaleBackbone(Backbone):
    """A backbone whose logit scale and bias are numbers, not tensors: a trace cannot hold Python floats."""

    scale: float = 1.0
    bias: float = 0.0

    @property
    def logit_scale(self) -> float:
        return self.scale

    @property
    def logit_bias(self) -> float:
        return self.bias


@contextlib.contextmanager
def fixed_scale(model: Model) -> Iterator[None]:
    """Let the model's logit scale and bias be constants."""
    own = model.backbone
    fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    model.backbone = FixedScaleBackbone(**fields, scale=own.logit_scale, bias=own.logit_bias)
    try:
        yield
    finally:
        model.backbone = own


def trace_image_side(model: Model, file: Path) -> None:
    """Write the graph from images to vectors, for any number of images."""
    # Two: a graph that is traced with a single image takes no other number.
    images = torch.zeros(2, 3, *model.backbone.image_size)
    batch = torch.export.Dim("batch")
    trace(ImageSide(model), (images,), file, ["images"], list(ROLES_OF_VECTORS), {"images": {0: batch}})


def trace_scores(model: Model, bank: TextBank, file: Path) -> None:
    """Write the graph from vectors and text vectors to scores, for any number of images."""
    tensors = bank_tensors(bank)
    vectors = [torch.randn(2, bank.pairs.shape[1]) for _ in ROLES_OF_VECTORS]
    batch = torch.export.Dim("batch")
    shapes = (*({0: batch} for _ in ROLES_OF_VECTORS), tuple({} for _ in tensors))
    names = [*ROLES_OF_VECTORS, *tensors]
    trace(ScoreSide(model, bank), (*vectors, *tensors.values()), file, names, ["scores"], shapes)


def trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    file: Path,
    names: list[str],
    outputs: list[str],
    shapes: object,
) -> None:
    """Trace a module and write its graph. Raises RefinerError if it cannot be traced."""
    try:
        with torch.no_grad(), quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(), inputs, dynamo=True, verbose=False, input_names=names, output_names=outputs,
                dynamic_shapes=shapes,  # type: ignore[arg-type]
            )  # fmt: skip
            assert program is not None  # noqa: S101 - it is with dynamo
            program.save(str(file))
    except Exception as error:  # the exporter raises a dozen unrelated kinds
        raise RefinerError(f"The model cannot be exported to ONNX ({first_line(error)}).") from error


def onnx_config(model: Model, info: ModelInfo, bank: TextBank, precision: OnnxPrecision) -> dict[str, object]:
    """The content of config.json, but for the agreement."""
    spec = model.backbone.spec
    return {
        "format": ONNX_FORMAT, "refiner": __version__, "method": info.method, "dataset": info.dataset,
        "dataset_fingerprint": info.dataset_fingerprint, "step": info.step, "metrics": defined_metrics(info),
        "precision": precision, "width": bank.pairs.shape[1], "outputs": list(ROLES_OF_VECTORS),
        "tensors": list(bank_tensors(bank)),
        "backbone": {
            "name": spec.name, "pretrained": spec.pretrained,
            "fingerprint": model.backbone.fingerprint_by_name(),
        },
        "preprocess": spec.preprocess, "labels": bank.space.to_json(),
        "calibration": model.calibration.to_json()
        | {"open_bias": model.calibration.bias_of(is_open=True)},  # a number, for other programs
    }  # fmt: skip


@torch.no_grad()
def require_agreement(
    model: Model, bank: TextBank, exported: OnnxModel, precision: OnnxPrecision, check: CheckImages
) -> Agreement:
    """How far an export's scores are from the model's. Raises RefinerError if that is too far."""
    parts = [check.pixels[:1], *check.pixels[1:].split(16)]  # batches of several sizes
    ours, theirs = (
        torch.cat([one.combine(one.corrected_scores(one.encode_images_tta(part), bank), bank.space)
                   for part in parts if len(part)])
        for one in (model, exported)
    )  # fmt: skip
    agreement = Agreement(
        images=len(check.pixels),
        source=check.source,
        largest_difference=float((ours - theirs).abs().max()),
        changed=float((ours.argmax(-1) != theirs.argmax(-1)).float().mean()),
        allowed_difference=ALLOWED_DIFFERENCE[precision],
        allowed_changed=ALLOWED_CHANGED[precision],
    )
    within = agreement.largest_difference <= agreement.allowed_difference
    if not (within and agreement.changed <= agreement.allowed_changed):
        raise RefinerError(
            f"The export was discarded: it does not agree with the model. {agreement_sentence(agreement)}",
            hint="Export with --dtype fp32." if precision == "int8" else "Please report this.",
        )
    return agreement


def agreement_sentence(agreement: Agreement) -> str:
    """An agreement in words."""
    return (
        f"On {agreement.images} images ({agreement.source}) the largest difference of two scores is "
        f"{agreement.largest_difference:.2g} (allowed: {agreement.allowed_difference:g}), and "
        f"{agreement.changed:.1%} of the best pairs change (allowed: {agreement.allowed_changed:.0%})."
    )
