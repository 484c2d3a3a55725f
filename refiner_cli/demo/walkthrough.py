"""The demo: draw a benchmark, train, evaluate, predict and export, offline and on any machine."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refiner_cli.config import method_section
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.export import export_model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import pick_device
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.demo import scenes
from refiner_cli.demo.attention_page import DemoScene, write_attention_page
from refiner_cli.demo.dataset import make_demo
from refiner_cli.demo.vocabulary import demo_split
from refiner_cli.errors import UsageError
from refiner_cli.evaluation.metrics.bias_sweep import Metrics
from refiner_cli.evaluation.scoring import evaluate_worlds
from refiner_cli.files import atomic_file
from refiner_cli.inference.formats import JsonLines
from refiner_cli.inference.predict import predict_files
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import scan
from refiner_cli.recipes import recipe_for
from refiner_cli.settings import resolve
from refiner_cli.training.calibrate import calibrate
from refiner_cli.training.run_dir import DatasetRef, Run, model_folder
from refiner_cli.training.setup import build_trainer, environment
from refiner_cli.training.trainer import Trainer

NUM_PHOTOS = 60
NUM_SCENES = 10  # rows of the attention page
MetricsByWorld = dict[str, Metrics]


@dataclass(frozen=True)
class DemoResult:
    """The metrics of the demo and the files it wrote."""

    zero_shot: MetricsByWorld
    refiner: MetricsByWorld
    seconds: float
    run: Path
    predictions: Path
    export: Path
    picture: Path


def run_demo(
    out: Path, *, seed: int, device: str, log: Callable[[str], None], follow: Callable[[Trainer], object]
) -> DemoResult:
    """Run the demo in ``out``, which must be empty or not exist.

    Args:
        log: called with a line at every stage.
        follow: runs a training to its end and shows its progress.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already.", hint="Give another --out.")
    pick_device(device)  # one that is not there is known before anything is drawn
    began = time.perf_counter()
    log("1/5 drawing the demo dataset")
    make_demo(out / "dataset", seed)
    benchmark = load_benchmark(out / "dataset", "demo")
    config = resolve([("demo", {"seed": seed, "device": device})], recipe_for("demo"))
    log("2/5 training Refiner on it")
    ref = DatasetRef("demo", str(benchmark.root.resolve()), benchmark.fingerprint())
    trainer = build_trainer(Run.create(out / "run", config, ref, environment()), benchmark, log)
    follow(trainer)
    log("3/5 evaluating zero-shot CLIP and Refiner, closed and open world")
    spaces = {"closed": benchmark.label_space("test"), "open": benchmark.label_space("test", "open")}
    refined, info = read_model(model_folder(out / "run"))
    refined.to(trainer.model.device)
    clip = build_model("clip", refined.backbone, method_section("clip")(), benchmark.vocabulary)
    calibrate(clip.to(refined.device), benchmark, config.calibration, trainer.options)
    zero_shot, ours_found = (
        evaluate_worlds(m, benchmark, "test", spaces, trainer.options) for m in (clip, refined)
    )
    log("4/5 predicting a folder of new images")
    draw_new_images(out / "photos", seed)
    ours, theirs = Recogniser(refined, precision=trainer.options.precision), Recogniser(clip)
    with atomic_file(out / "predictions.jsonl") as part, part.open("w", encoding="utf-8") as stream:
        sink = JsonLines(stream)
        for row in predict_files(ours, scan([out / "photos"]), top_k=5, batch=32, workers=0):
            sink.write(row)
    log("5/5 exporting the model and drawing what its queries attend to")
    export_model(out / "model", refined, info, dtype="fp16", with_backbone=True)
    write_attention_page(out / "picture.html", some_scenes(benchmark, seed), theirs, ours)
    return DemoResult(
        zero_shot=zero_shot,
        refiner=ours_found,
        seconds=time.perf_counter() - began,
        run=out / "run",
        predictions=out / "predictions.jsonl",
        export=out / "model",
        picture=out / "picture.html",
    )


def draw_new_images(folder: Path, seed: int) -> None:
    """Draw new images of pairs that training never saw, under neutral names."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng((seed, 99))
    for number in range(NUM_PHOTOS):
        pair = demo_split().test_unseen[int(rng.integers(len(demo_split().test_unseen)))]
        scenes.scene(pair, demo_split().train, rng).save(folder / f"photo_{number:03d}.jpg", quality=92)


def some_scenes(benchmark: Benchmark, seed: int) -> list[DemoScene]:
    """Test scenes for the attention page, most of unseen pairs; chosen at random."""
    samples = list(benchmark.samples["test"])
    random.Random(seed).shuffle(samples)
    train = set(benchmark.pairs["train"])
    unseen = [s for s in samples if s.pair not in train][: NUM_SCENES - 3]
    seen = [s for s in samples if s.pair in train][:3]
    return [DemoScene(benchmark.images / s.path, s, s.pair in train) for s in unseen + seen]
