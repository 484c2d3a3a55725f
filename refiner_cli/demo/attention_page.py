"""The demo's picture: a page of scenes, what CLIP and Refiner say, and where each query looks."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import torch
from PIL import Image

from refiner_cli.core.models.refiner import Refiner
from refiner_cli.data.benchmark import Sample
from refiner_cli.data.images import decode
from refiner_cli.files import atomic_file
from refiner_cli.inference.attention_maps import overlay, seen_by_model
from refiner_cli.inference.recogniser import Composition, Recogniser


def template(name: str) -> Template:
    """A page, or a part of one, that lies beside this module."""
    return Template(resources.files("refiner_cli.demo").joinpath(name).read_text("utf-8"))


@dataclass(frozen=True)
class DemoScene:
    """One scene of the page."""

    file: Path
    sample: Sample
    seen: bool


def write_attention_page(file: Path, scenes: list[DemoScene], clip: Recogniser, refined: Recogniser) -> None:
    """Write the page, self-contained. ``refined`` must hold a model with concept queries."""
    model = refined.model
    if not isinstance(model, Refiner):
        raise TypeError("Only a Refiner model has concept queries to show.")
    images = [decode(scene.file) for scene in scenes]
    pixels = torch.stack([refined.preprocess(image) for image in images])
    looks = model.query_attention(pixels.to(model.device))  # B x K x L
    said = [[guess.compositions[0] for guess in who.predict(images, top_k=1)] for who in (clip, refined)]
    size = model.backbone.spec.preprocess["size"]
    rows = [
        row(scene, seen_by_model(image, size), look, zero, ours)
        for scene, image, look, zero, ours in zip(scenes, images, looks, *said, strict=True)
    ]
    with atomic_file(file) as part:
        part.write_text(
            template("attention_page.html").substitute(queries=looks.shape[1], rows="".join(rows)), "utf-8"
        )


def row(
    scene: DemoScene, image: Image.Image, look: torch.Tensor, zero: Composition, ours: Composition
) -> str:
    truth = " ".join(scene.sample.pair)
    names = {"clip": f"{zero.state} {zero.object}", "refiner": f"{ours.state} {ours.object}"}
    return template("attention_row.html").substitute(
        photo=data_url(image),
        truth=html.escape(truth),
        kind="seen in training" if scene.seen else "never seen in training",
        looks="".join(f'<img src="{data_url(overlay(image, one))}" alt="">' for one in look),
        **{name: html.escape(text) for name, text in names.items()},
        **{f"{name}_class": "good" if text == truth else "bad" for name, text in names.items()},
    )


def data_url(image: Image.Image) -> str:
    """An image as a JPEG inside a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
