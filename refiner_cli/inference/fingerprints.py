"""Digests of what decides the scores of an image, and of what decides its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from torch import Tensor

from refiner_cli.core.models.base import Model
from refiner_cli.core.models.hubness import CENTRES

DIGEST_LENGTH = 16  # of a digest


def score_fingerprint(model: Model) -> str:
    """Of everything that the scores depend on besides candidates and preprocessing."""
    digest = hashlib.sha256(model.backbone.use_fingerprint().encode())
    digest.update(json.dumps([type(model).__name__, model.config.model_dump()]).encode())
    digest.update(json.dumps(model.calibration.to_json()).encode())
    return add_tensors(digest, model.saved_tensors())


def vector_fingerprint(model: Model, shifts: int = 0) -> str:
    """Of everything that image vectors depend on besides preprocessing.

    Of the calibration that is the number of shifted views alone. Where the image side is the frozen backbone,
    all methods above it share their vectors.

    Args:
        shifts: another number of shifted views; 0: that of the calibration.
    """
    views = shifts or model.calibration.tta_shifts
    digest = hashlib.sha256(f"{model.backbone.use_fingerprint()} {views}".encode())
    if model.frozen_image_side:
        return digest.hexdigest()[:DIGEST_LENGTH]
    digest.update(json.dumps([type(model).__name__, model.config.model_dump()]).encode())
    return add_tensors(digest, {name: one for name, one in model.saved_tensors().items() if name != CENTRES})


def add_tensors(digest: hashlib._Hash, tensors: Mapping[str, Tensor]) -> str:
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.detach().to("cpu").float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:DIGEST_LENGTH]


def preprocessing_fingerprint(model: Model) -> str:
    content = json.dumps(model.backbone.spec.preprocess, sort_keys=True, default=list)
    return hashlib.sha256(content.encode()).hexdigest()[:DIGEST_LENGTH]
