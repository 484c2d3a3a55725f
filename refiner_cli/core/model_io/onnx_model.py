"""An ONNX export behind the interface of all models, run by ONNX Runtime on the CPU."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from refiner_cli.config import MethodConfig
from refiner_cli.core.model_io.checkpoint import ModelInfo
from refiner_cli.core.model_io.onnx_files import (
    IMAGE_FILE,
    ROLES_OF_VECTORS,
    SCORES_FILE,
    TEXT_FILE,
    read_onnx_config,
    require_package,
)
from refiner_cli.core.model_io.schema import StoredCalibration
from refiner_cli.core.models.base import ImageVectors, Model, PairIndices, Scores, TextBank
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.towers.backbone import Backbone, BackboneSpec
from refiner_cli.core.towers.library_messages import first_line
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ModelFileError, UsageError
from refiner_cli.files import sha256

TYPICAL_WIDTH = 1024  # of an image tower, to estimate what a batch takes


class ContentDigest(nn.Module):
    """Stands where the towers' weights are in other models: what identifies the graphs."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        digest = hashlib.sha256()
        for name in (IMAGE_FILE, SCORES_FILE, TEXT_FILE):
            for file in sorted(folder.glob(f"{name}*")):
                digest.update(bytes.fromhex(sha256(file)))
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)  # on the model's device
        self.register_buffer("digest", torch.tensor(list(digest.digest()), dtype=torch.uint8))


class OnnxModel(Model):
    """A fixed set of pairs; built by :func:`read_onnx` or :meth:`from_config`."""

    Config = MethodConfig

    def __init__(self, backbone: Backbone, space: LabelSpace, folder: Path, names: list[str]) -> None:
        super().__init__(backbone, MethodConfig(), space)
        self.image_side, self.score_side = (
            open_session(folder / IMAGE_FILE),
            open_session(folder / SCORES_FILE),
        )
        self.stored = read_text_vectors(folder / TEXT_FILE, names)
        self.has_state_branch, self.has_object_branch = "states" in names, "objects" in names

    @classmethod
    def from_config(cls, folder: Path, config: dict[str, Any]) -> OnnxModel:
        """From a folder and the content of its config.json, which was checked.

        Raises:
            ModelFileError: a file is missing or damaged.
            EnvironmentLacksError: ONNX Runtime is not installed.
        """
        require_package("onnxruntime", "An ONNX export")
        width = config["width"]
        spec = BackboneSpec(
            config["backbone"]["name"], config["backbone"]["pretrained"], {"embed_dim": width},
            config["preprocess"],
        )  # fmt: skip
        tower: Any = SimpleNamespace(width=TYPICAL_WIDTH, patch_size=1, depth=0)
        backbone = Backbone(spec, ContentDigest(folder), tower, cast("Any", None))
        model = cls(backbone, LabelSpace.from_json(config["labels"]), folder, config["tensors"])
        if model.stored["pairs"].shape != (len(model.space.pairs), width):
            raise ModelFileError(f"{folder / TEXT_FILE} does not fit the labels in config.json.")
        model.calibration = StoredCalibration.model_validate_json(json.dumps(config["calibration"])).value()
        return model.eval()

    def encode_images(self, images: Tensor) -> ImageVectors:
        """Preprocessed images ``B x 3 x H x W`` -> vectors. Raises ModelFileError for a graph that fails."""
        composition, state, obj = self.run(self.image_side, {"images": images}, list(ROLES_OF_VECTORS))
        return ImageVectors(composition, state, obj)

    def encode_images_tta(self, images: Tensor) -> ImageVectors:
        return self.encode_images(images)  # the graph averages over the views itself

    def encode_pairs(self, space: LabelSpace) -> TextBank:
        if space != self.space:
            raise UsageError(
                f"An ONNX export knows the {len(self.space.pairs)} pairs it was made for, and no others.",
                hint="Export again with --states, --objects or --pairs.",
            )
        return TextBank(
            space, self.stored["pairs"], self.stored.get("states"), self.stored.get("objects"),
            self.stored.get("offsets"),
        )  # fmt: skip

    def text_bank(self, space: LabelSpace) -> TextBank:
        return self.encode_pairs(space)  # with its offsets

    def corrected_scores(self, images: ImageVectors, bank: TextBank) -> Scores:
        return self.score(images, bank)  # the graph subtracts the offsets itself

    def score(self, images: ImageVectors, bank: TextBank) -> Scores:
        """The final scores in the place of the composition logits: the graph combines them itself."""
        vectors = {role: getattr(images, role) for role in ROLES_OF_VECTORS}
        texts = {name: getattr(bank, name) for name in self.stored}
        return Scores(self.run(self.score_side, vectors | texts, ["scores"])[0], None, None)

    def combine(self, scores: Scores, space: PairIndices, calibration: Calibration | None = None) -> Tensor:
        del space, calibration
        return scores.composition

    @staticmethod
    def run(session: Any, inputs: dict[str, Tensor], outputs: list[str]) -> list[Tensor]:
        """Run a graph on tensors. Inputs that it does not use are left out."""
        used = {value.name for value in session.get_inputs()}
        given = {name: value.float().numpy() for name, value in inputs.items() if name in used}
        try:
            return [torch.from_numpy(value) for value in session.run(outputs, given)]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's own kinds, without a common base
            raise ModelFileError(f"The ONNX graph cannot be run ({first_line(error)}).") from None


def check_runs_on(device: str, precision: str) -> None:
    """Raise UsageError for a device or a precision that an export does not have."""
    if device not in {"auto", "cpu"}:
        raise UsageError(f"An ONNX export runs on the CPU, not on {device}.")
    if precision not in {"auto", "fp32"}:
        raise UsageError(
            f"An ONNX export computes as it was exported, not in {precision}.",
            hint="'refiner export --format onnx --dtype int8' makes a faster one.",
        )


def open_session(file: Path) -> Any:
    """A graph, ready to run on as many threads as PyTorch uses. Raises ModelFileError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors come as exceptions
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - as above
        raise ModelFileError(f"The ONNX graph {file} cannot be read ({first_line(error)}).") from None


def read_text_vectors(file: Path, names: list[str]) -> dict[str, Tensor]:
    """The text vectors by name. Raises ModelFileError."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: torch.from_numpy(content[name].astype(np.float32)) for name in names}
    except Exception as error:  # noqa: BLE001 - a damaged archive fails in many ways
        raise ModelFileError(f"The text vectors {file} cannot be read ({first_line(error)}).") from None


def read_onnx(folder: Path) -> tuple[Model, ModelInfo]:
    """The model of an ONNX export, on the CPU.

    Raises:
        ModelFileError: a file is missing or damaged.
        EnvironmentLacksError: ONNX Runtime is not installed.
    """
    config, stored = read_onnx_config(folder)
    info = ModelInfo(
        stored.method, stored.dataset, "", stored.dataset_fingerprint, stored.step, dict(stored.metrics)
    )  # fmt: skip
    return OnnxModel.from_config(folder, config), info
