"""The demo's picture: a page of scenes, what CLIP and Refiner say, and where each query looks."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
from PIL import Image

from refiner_cli.core.refiner import Refiner
from refiner_cli.data.benchmark import Sample
from refiner_cli.data.images import decode
from refiner_cli.files import whole_file
from refiner_cli.inference.heatmaps import overlay, seen_by_model
from refiner_cli.inference.recogniser import Composition, Recogniser

PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>What the concept queries look at</title>
<style>
:root { color-scheme: light dark; --ink: #1c1d20; --soft: #6b6f76; --line: #e3e4e8; --page: #fbfbfc; --good: #1a7f4b; --bad: #b3432b }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --soft: #9a9da6; --line: #2c2e35; --page: #15161a; --good: #53c98a; --bad: #f0795d } }
body { margin: 2.5rem auto; max-width: 76rem; padding: 0 1.5rem; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } p { color: var(--soft); max-width: 46rem; margin: 0 0 2rem }
.row { display: grid; grid-template-columns: 9rem 15rem 1fr; gap: 1.2rem; align-items: center; padding: 1rem 0; border-top: 1px solid var(--line) }
.photo { width: 9rem } img { display: block; border-radius: 6px; width: 100% }
.looks { display: grid; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); gap: .45rem }
dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: .1rem .7rem } dt { color: var(--soft) } dd { margin: 0; font-weight: 600 }
.good { color: var(--good) } .bad { color: var(--bad) }
@media (max-width: 50rem) { .row { grid-template-columns: 7rem 1fr } .looks { grid-column: 1 / -1 } .photo { width: 7rem } }
</style>
<h1>What the concept queries look at</h1>
<p>Scenes of the demo's test split: one object in a state, on pieces of other objects in other states. Every small
picture is one of the $queries learned queries; bright is where it reads.</p>
$rows
</html>
""")
ROW = Template("""<div class="row"><img class="photo" src="$photo" alt="$truth">
<dl><dt>truth</dt><dd>$truth</dd><dt></dt><dd style="font-weight:400">$kind</dd><dt>CLIP</dt><dd class="$clip_class">$clip</dd><dt>Refiner</dt><dd class="$refiner_class">$refiner</dd></dl>
<div class="looks">$looks</div></div>
""")


@dataclass(frozen=True)
class Shown:
    """One scene of the page."""

    file: Path
    sample: Sample
    seen: bool


def write_picture(file: Path, scenes: list[Shown], clip: Recogniser, refined: Recogniser) -> None:
    """Write the page, self-contained. ``refined`` must hold a model with concept queries."""
    model = refined.model
    if not isinstance(model, Refiner):
        raise TypeError("Only a Refiner model has concept queries to show.")
    images = [decode(scene.file) for scene in scenes]
    pixels = torch.stack([refined.preprocess(image) for image in images])
    looks = model.look(pixels.to(model.device))  # B x K x L
    said = [[guess.compositions[0] for guess in who.predict(images, top_k=1)] for who in (clip, refined)]
    size = model.backbone.spec.preprocess["size"]
    rows = [
        row(scene, seen_by_model(image, size), look, zero, ours)
        for scene, image, look, zero, ours in zip(scenes, images, looks, *said, strict=True)
    ]
    with whole_file(file) as part:
        part.write_text(PAGE.substitute(queries=looks.shape[1], rows="".join(rows)), "utf-8")


def row(scene: Shown, image: Image.Image, look: torch.Tensor, zero: Composition, ours: Composition) -> str:
    truth = " ".join(scene.sample.pair)
    names = {"clip": f"{zero.state} {zero.object}", "refiner": f"{ours.state} {ours.object}"}
    return ROW.substitute(
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
