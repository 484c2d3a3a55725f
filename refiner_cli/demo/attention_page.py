"""The demo's page: test scenes, what CLIP and Refiner predict, and where each query attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from refiner_cli.core.models.refiner import Refiner
from refiner_cli.data.benchmark import Sample
from refiner_cli.data.images import decode
from refiner_cli.inference.attention_maps import overlay, seen_by_model
from refiner_cli.inference.recogniser import Composition, Recogniser
from refiner_cli.render import data_url, write_page


@dataclass(frozen=True)
class DemoScene:
    """A test image with its label."""

    file: Path
    sample: Sample
    seen: bool


@dataclass(frozen=True)
class SceneCard:
    """One row of the page; images are data URLs."""

    photo: str
    truth: str
    seen: bool
    predictions: Sequence[tuple[str, str]]  # (who, what)
    attention: Sequence[str]  # one image per query


def write_attention_page(file: Path, scenes: list[DemoScene], clip: Recogniser, refined: Recogniser) -> None:
    """Write the page, self-contained. ``refined`` must hold a model with concept queries."""
    model = refined.model
    if not isinstance(model, Refiner):
        raise TypeError("Only a Refiner model has concept queries to show.")
    images = [decode(scene.file) for scene in scenes]
    pixels = torch.stack([refined.preprocess(image) for image in images])
    attention = model.query_attention(pixels.to(model.device))  # B x K x L
    of_clip, of_refiner = (
        [prediction.compositions[0] for prediction in recogniser.predict(images, top_k=1)]
        for recogniser in (clip, refined)
    )
    size = model.backbone.spec.preprocess["size"]
    cards = [
        scene_card(scene, seen_by_model(image, size), maps, {"CLIP": zero_shot, "Refiner": ours})
        for scene, image, maps, zero_shot, ours in zip(
            scenes, images, attention, of_clip, of_refiner, strict=True
        )
    ]
    write_page(
        file,
        "demo/attention_page.html",
        title="What the concept queries attend to",
        captions=model.query_roles,
        cards=cards,
    )


def scene_card(
    scene: DemoScene, image: Image.Image, attention: torch.Tensor, predictions: dict[str, Composition]
) -> SceneCard:
    """``image`` as the model saw it; ``attention`` is ``K x L``."""
    return SceneCard(
        data_url(image, quality=88),
        " ".join(scene.sample.pair),
        scene.seen,
        [(who, f"{one.state} {one.object}") for who, one in predictions.items()],
        [data_url(overlay(image, query), quality=88) for query in attention],
    )
