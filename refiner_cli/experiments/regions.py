"""Region-specific or not: how much of a query's attention lies on the object.

``python -m refiner_cli.experiments regions RUN`` measures it on the test images of the demo benchmark,
whose scenes are drawn again with their masks; ``--boxes FILE`` takes the object's box of each photo
from a CSV file (path, x, y, width, height in pixels) instead. Per image, attention is a distribution over
the patches: its *mass* on the object is compared with the object's share of the image, which is what
uniform attention would give (the pointing game, Zhang et al., ECCV 2016, in its soft form).

Shapes: ``B`` images, ``K`` queries, ``L`` patches, ``W`` visual width.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.refiner import Refiner
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.data.crop import Crop
from refiner_cli.data.images import Preprocess, decode
from refiner_cli.demo.dataset import DrawTask, demo_pairs, draw_tasks, scene_of
from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.training.run_dir import Run, is_run, model_folder

REGIONS_SCHEMA = "refiner.regions/1"
BATCH_SIZE = 32
SAMPLES = 1000  # bootstrap samples of the images


@dataclass(frozen=True)
class Regions:
    """Where a batch of images shows the object and clutter, as shares of each patch's pixels."""

    object: Tensor  # B x L in [0, 1]
    clutter: Tensor  # B x L in [0, 1]


@dataclass(frozen=True)
class RegionStatistics:
    """Attention mass per image; ``measure`` makes it, and means and intervals come from it."""

    area: Tensor  # B, the object's share of the image
    class_object: Tensor  # B, mass of the class token's attention on the object
    class_clutter: Tensor  # B
    query_object: Tensor  # B x K
    query_clutter: Tensor  # B x K
    overlap: Tensor  # B, mean total variation between two queries; NaN with fewer than two

    def to_json(self, roles: Sequence[str]) -> dict[str, Any]:
        """The report: means, with the 95 % interval of each over images."""
        queries = [
            {"role": role, **masses(self.query_object[:, k], self.query_clutter[:, k])}
            for k, role in enumerate(roles)
        ]
        return {
            "schema": REGIONS_SCHEMA,
            "images": len(self.area),
            "area": self.area.mean().item(),
            "class_token": masses(self.class_object, self.class_clutter),
            "queries": queries,
            "overlap_tv": None if self.overlap.isnan().any() else self.overlap.mean().item(),
            "overlap_tv_interval": interval(self.overlap),
            "excess": {
                "class_token": excess(self.class_object, self.area),
                **{f"query {k}": excess(self.query_object[:, k], self.area) for k in range(len(roles))},
            },
        }


def masses(on_object: Tensor, on_clutter: Tensor) -> dict[str, Any]:
    return {"object": on_object.mean().item(), "clutter": on_clutter.mean().item(),
            "object_interval": interval(on_object), "clutter_interval": interval(on_clutter)}  # fmt: skip


def excess(on_object: Tensor, area: Tensor) -> dict[str, Any]:
    """Mass on the object beyond the object's area."""
    return {"mean": (on_object - area).mean().item(), "interval": interval(on_object - area)}


def interval(values: Tensor) -> list[float] | None:
    """The 95 % bootstrap interval of a mean over images; None where a value is undefined."""
    if values.isnan().any():
        return None
    chance = torch.Generator().manual_seed(0)
    rows = torch.randint(len(values), (SAMPLES, len(values)), generator=chance)
    means = values.double()[rows].mean(1)
    return torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()


def measure(class_token: Tensor, queries: Tensor, regions: Regions) -> RegionStatistics:
    """Attention mass on object and clutter.

    Args:
        class_token: ``B x L``, the class token's attention over the patches; rows sum to 1.
        queries: ``B x K x L``, that of the queries.
        regions: of the same images.
    """
    K = queries.shape[1]
    first, second = torch.triu_indices(K, K, 1)
    distance = (queries[:, first] - queries[:, second]).abs().sum(-1) / 2  # B x pairs of queries
    return RegionStatistics(
        area=regions.object.mean(1),
        class_object=(class_token * regions.object).sum(-1),
        class_clutter=(class_token * regions.clutter).sum(-1),
        query_object=(queries * regions.object[:, None]).sum(-1),
        query_clutter=(queries * regions.clutter[:, None]).sum(-1),
        overlap=distance.mean(1) if K > 1 else torch.full((len(queries),), math.nan),
    )


def concat(found: Sequence[RegionStatistics]) -> RegionStatistics:
    """The statistics of all batches."""
    fields = RegionStatistics.__dataclass_fields__
    return RegionStatistics(**{name: torch.cat([getattr(part, name) for part in found]) for name in fields})


def patch_shares(mask: Image.Image, crop: Crop, patch: int) -> tuple[Tensor, Tensor]:
    """A mask (object in red, clutter in green) in the model's frame, averaged per patch: two of ``L``."""
    seen = torch.from_numpy(np.asarray(crop.fit(mask), np.float32)[..., :2] / 255)  # H x W x 2
    rows, columns = crop.height // patch, crop.width // patch
    seen = seen[: rows * patch, : columns * patch]
    shares = seen.reshape(rows, patch, columns, patch, 2).mean((1, 3)).reshape(-1, 2)  # L x 2
    return shares[:, 0], shares[:, 1]


def demo_masks(benchmark: Benchmark, split: str, seeds: Sequence[int]) -> Iterator[tuple[Path, Image.Image]]:
    """The files of a split of the demo benchmark, and their masks, drawn again.

    Raises:
        DatasetError: an image is not what the demo draws for any of the ``seeds``.
    """
    by_path = {seed: tasks_by_path(benchmark, seed) for seed in seeds}
    for sample in benchmark.samples[split]:  # type: ignore[index] # the caller gives a split's name
        file = benchmark.images / sample.path
        for jobs in by_path.values():
            task = jobs.get(sample.path)
            scene = scene_of(task) if task else None
            if scene is not None and same_picture(file, scene.image):
                flat = np.zeros((*scene.object.shape, 3), np.uint8)
                flat[..., 0], flat[..., 1] = scene.object * 255, scene.clutter * 255
                yield file, Image.fromarray(flat)
                break
        else:
            raise DatasetError(
                f"{file} is not an image of the demo benchmark, so its mask is not known.",
                hint="Give the objects' boxes with --boxes FILE.",
            )


def tasks_by_path(benchmark: Benchmark, seed: int) -> dict[str, DrawTask]:
    """What the demo draws with a seed, by path below ``images/``."""
    from refiner_cli.demo.dataset import DemoSize

    counts = {
        split: len(samples) // len(benchmark.pairs[split]) for split, samples in benchmark.samples.items()
    }
    every = draw_tasks(benchmark.root, demo_pairs(0), DemoSize(**counts), seed, CLUTTER, 0)
    return {task.file.relative_to(benchmark.images).as_posix(): task for task in every}


def same_picture(file: Path, drawn: Image.Image) -> bool:
    """Whether a stored JPEG shows what was drawn, up to its compression."""
    stored = np.asarray(decode(file), np.int16)
    return stored.shape == (*drawn.size[::-1], 3) and np.abs(stored - np.asarray(drawn)).mean() < 12


def box_masks(file: Path) -> Iterator[tuple[Path, Image.Image]]:
    """Photos and masks from a CSV file with the columns path, x, y, width and height, in pixels.

    Everything outside an image's boxes counts as clutter. Raises DatasetError.
    """
    boxes: dict[str, list[tuple[float, ...]]] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), 2):
                try:
                    place = tuple(float(row[key]) for key in ("x", "y", "width", "height"))
                    boxes.setdefault(row["path"], []).append(place)
                except (KeyError, TypeError, ValueError) as error:
                    raise DatasetError(f"{file}, line {number} is not a box ({error}).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The boxes {file} cannot be read ({error}).") from None
    if not boxes:
        raise DatasetError(f"{file} holds no boxes.")
    for name, places in boxes.items():
        photo = file.parent / name
        image = decode(photo)
        flat = np.zeros((image.height, image.width, 3), np.uint8)
        for x, y, width, height in places:
            flat[max(0, round(y)) : round(y + height), max(0, round(x)) : round(x + width), 0] = 255
        flat[..., 1] = 255 - flat[..., 0]
        yield photo, Image.fromarray(flat)


@torch.no_grad()
def attention(model: Refiner, images: Tensor) -> tuple[Tensor, Tensor]:
    """The class token's attention ``B x L`` and that of the queries ``B x K x L``, in the last block."""
    tower = model.backbone.visual
    if not tower.num_prefix_tokens:
        raise UsageError("This backbone has no class token to compare the queries with.")
    x = model.encode_tokens(images)
    patches = tower.attention_weights(tower.depth - 1, x)[:, 0, tower.num_prefix_tokens :]  # B x L
    return patches / patches.sum(-1, keepdim=True), model.query_attention(images)


def measure_model(model: Model, masks: Iterator[tuple[Path, Image.Image]]) -> dict[str, Any]:
    """The report of a model on images with masks. Raises UsageError if the model has no queries."""
    if not isinstance(model, Refiner) or model.visual_refinement is None:
        raise UsageError("This model has no queries, so there is no attention to measure.")
    preprocess, found = Preprocess(model.backbone.spec.preprocess), []
    while batch := [pair for _, pair in zip(range(BATCH_SIZE), masks, strict=False)]:
        images = torch.stack([preprocess(decode(file)) for file, _ in batch])
        shares = [patch_shares(m, preprocess.crop, model.backbone.visual.patch_size) for _, m in batch]
        regions = Regions(torch.stack([o for o, _ in shares]), torch.stack([c for _, c in shares]))
        found.append(measure(*attention(model, images), regions))
    return concat(found).to_json(model.query_roles)


def table(report: dict[str, Any]) -> str:
    """The report for people, as a Markdown table."""

    def row(name: str, entry: dict[str, Any]) -> str:
        low, high = entry["object_interval"]
        return f"| {name} | {entry['object']:.3f} ({low:.3f} to {high:.3f}) | {entry['clutter']:.3f} |"

    rows = [row("class token", report["class_token"])]
    rows += [row(f"query {k}, {query['role']}", query) for k, query in enumerate(report["queries"])]
    overlap = report["overlap_tv"]
    return "\n".join(
        [
            f"{report['images']} images; the object covers {report['area']:.3f} of an image on average.",
            "",
            "| attention of | mass on the object (95 %) | on clutter |",
            "|---|---|---|",
            *rows,
            "",
            "Mean total variation between two queries: " + ("-" if overlap is None else f"{overlap:.3f}"),
        ]
    )


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments regions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run on the demo, or any model with --boxes")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--dataset", type=Path, help="the demo benchmark, if it is not where the run says")
    parser.add_argument("--boxes", type=Path, help="a CSV file: path, x, y, width, height in pixels")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    model, info = read_model(model_folder(options.run))
    if options.boxes:
        masks = box_masks(options.boxes)
    else:
        seed = Run.open(options.run).config.seed if is_run(options.run) else 0
        benchmark = load_benchmark(options.dataset or Path(info.dataset_path))
        masks = demo_masks(benchmark, options.split, sorted({seed, 0}))
    report = measure_model(model, masks)
    sys.stdout.write((json.dumps(report, indent=2) if options.json else table(report)) + "\n")
