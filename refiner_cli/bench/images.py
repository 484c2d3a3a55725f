"""Images: encoding against a bare open_clip loop, decoding, and prediction from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torchvision.transforms import v2

from refiner_cli.bench.measure import BenchResult, median_seconds
from refiner_cli.bench.predict import measure_throughput
from refiner_cli.bench.train import BenchMachine, random_images
from refiner_cli.config import Config
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast
from refiner_cli.core.runtime.loader import (
    EvalTransform,
    ImageTransform,
    TrainTransform,
    load_batches,
    pick_num_workers,
    sequential_batches,
)
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.image_file import IMAGE_FORMATS
from refiner_cli.data.images import AUGMENTS, Preprocess
from refiner_cli.data.labels import LabelSpace
from refiner_cli.inference.recogniser import Recogniser


def write_noise_photos(folder: Path, count: int, side: tuple[int, int] = (800, 600)) -> list[Path]:
    """JPEG files of smooth noise, about the size and detail of photos shared from a phone."""
    random = np.random.default_rng(0)
    files = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        file = folder / f"{i:04d}.jpg"
        coarse.resize(side, Image.Resampling.BICUBIC).save(file, quality=90)
        files.append(file)
    return files


def per_second(
    what: str, ways: dict[str, Callable[[], object]], count: int, machine: BenchMachine
) -> Iterator[BenchResult]:
    """Images per second of each variant; the first is the baseline of the others."""
    taken = median_seconds(ways, machine.device, rounds=machine.rounds)
    bare = next(iter(ways))
    for name, value in taken.items():
        compared = None if name == bare else bare
        yield BenchResult(
            f"{what}: {name}", count / value, "images/s", compared, taken[bare] / value if compared else None
        )


@torch.no_grad()
def bench_encode(
    backbone: Backbone, space: LabelSpace, config: Config, machine: BenchMachine
) -> Iterator[BenchResult]:
    """The model's image encoding against open_clip's ``encode_image`` of the same tower."""
    model = build_model(config.method, backbone, config.model, space).to(machine.device).eval()
    images = random_images(backbone, config.train.batch_size, machine.device)

    def run(encode: Callable[[torch.Tensor], object]) -> Callable[[], object]:
        def once() -> object:
            with autocast(machine.device, machine.precision):
                return encode(images)

        return once

    ways = {
        "open_clip encode_image": run(backbone.clip.encode_image),
        "refiner": run(model.encode_images_tta),
    }
    yield from per_second(f"encode, batch {len(images)}", ways, len(images), machine)


def bench_decode(backbone: Backbone, files: Sequence[Path], machine: BenchMachine) -> Iterator[BenchResult]:
    """Files to preprocessed batches: evaluation, training and prediction against the usual ways.

    The usual ways are PIL with open_clip's transform, and with torchvision's transforms on tensors (its own
    decoders are deprecated).
    """
    config = backbone.spec.preprocess
    bare = open_clip.transform.image_transform_v2(open_clip.transform.PreprocessCfg(**config), is_train=False)
    own = EvalTransform(Preprocess(config))
    crop = own.preprocess.crop
    resize = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(min(crop.height, crop.width), antialias=True),
            v2.CenterCrop((crop.height, crop.width)),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )

    def plain(transform: Callable[[Image.Image], object]) -> Callable[[], None]:
        def read_all() -> None:
            for file in files:
                with Image.open(file, formats=IMAGE_FORMATS) as image:
                    transform(image.convert("RGB"))

        return read_all

    def predicting() -> None:
        for rows in sequential_batches(len(files), 32):
            frames = torch.from_numpy(np.stack([crop.load(files[row]) for row in rows]))
            own.finish(frames.to(machine.device), ())

    def read(transform: ImageTransform, workers: int) -> Callable[[], object]:
        order = sequential_batches(len(files), 32)
        return lambda: sum(
            len(b.rows) for b in load_batches(files, transform, order, device=machine.device, workers=workers)
        )

    ways: dict[str, Callable[[], object]] = {
        "PIL and open_clip's transform": plain(bare),
        "PIL and torchvision's transforms": plain(resize),
        "refiner, evaluation": read(own, 0),
        "refiner, prediction": predicting,
        **{f"refiner, training {name}": read(TrainTransform(augment(config), 0), 0)
           for name, augment in AUGMENTS.items()},
    }  # fmt: skip
    yield from per_second("decode 800 x 600 JPEG on one core", ways, len(files), machine)
    count, _ = pick_num_workers(-1, machine.device)
    if count:
        ways = {"PIL and open_clip's transform": plain(bare), f"refiner, {count} processes": read(own, count)}
        yield from per_second("decode 800 x 600 JPEG", ways, len(files), machine)


def bench_predict(
    backbone: Backbone, space: LabelSpace, config: Config, files: Sequence[Path], machine: BenchMachine
) -> Iterator[BenchResult]:
    """Files to written rows, against a loop that decodes and encodes batches."""
    model = build_model(config.method, backbone, config.model, space).to(machine.device).eval()
    recogniser = Recogniser(model, precision=machine.precision)
    workers, _ = pick_num_workers(-1, machine.device)
    batch = max(1, min(config.train.batch_size, len(files) // 4))  # the first batch is not timed
    found = measure_throughput(recogniser, files, batch=batch, workers=workers, rounds=machine.rounds)
    what = f"predict, {len(space.pairs)} pairs, batch {batch}"
    name = "bare loop: decode, encode_image"
    yield BenchResult(f"{what}: {name}", found.bare, "images/s", None, None)
    yield BenchResult(f"{what}: refiner", found.predict, "images/s", name, found.ratio)
