"""``python -m refiner_cli.experiments warm-start --out DIR --dataset DIR``: a trained model as a start.

The objects of a benchmark are divided at random into two halves. A model is trained on all images of the
first half; on a few images of every pair of the second, one model starts from it and another from
nothing, with the same recipe and seed. Both are measured on the test images of the second half. Each
draw divides the objects anew. An interrupted study resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from refiner_cli.core.model_io.checkpoint import ModelInfo, write_model
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import Model
from refiner_cli.data.benchmark import SPLITS, Benchmark, load_benchmark
from refiner_cli.experiments.arguments import positive
from refiner_cli.experiments.few_shot import (
    MEASURED,
    FewShotMethod,
    draw_images,
    method_config,
    spread,
    test_metrics,
    train_method,
)
from refiner_cli.experiments.result_file import StudyFigures, determinants_of, kept_figures
from refiner_cli.experiments.tables import table_head, table_row

# The recipe of the tiny backbone's own benchmark; its four views would only cost time here, and the
# settings of the words are those of the second training, so that the start alone differs.
WORDS = {"calibration.wise_ft_alpha": (1.0,), "model.primitive_dropout": 0.0, "calibration.folds": 0}
FIRST = FewShotMethod("first", "the first half", "demo", {"calibration.tta_shifts": (1,), **WORDS})
SECOND = FewShotMethod(
    "second", "a few images of the second half", "few", {"model.adapter_blocks": 6, **WORDS}
)


def with_objects(benchmark: Benchmark, objects: frozenset[str]) -> Benchmark:
    """The pairs and images of some objects; an unseen pair whose state is not in training is left out."""
    states = {state for state, obj in benchmark.pairs["train"] if obj in objects}
    pairs = {
        split: tuple(pair for pair in benchmark.pairs[split] if pair[1] in objects and pair[0] in states)
        for split in SPLITS
    }
    samples = {
        split: tuple(sample for sample in benchmark.samples[split] if sample.pair in set(pairs[split]))
        for split in SPLITS
    }
    return dataclasses.replace(benchmark, pairs=pairs, samples=samples)


def halves(benchmark: Benchmark, draw: int) -> tuple[frozenset[str], frozenset[str]]:
    """The objects in two halves, at random."""
    objects = sorted(benchmark.objects)
    random.Random(f"halves {draw}").shuffle(objects)
    middle = len(objects) // 2
    return frozenset(objects[:middle]), frozenset(objects[middle:])


def compare_starts(benchmark: Benchmark, shots: int, draw: int) -> StudyFigures:
    """The test metrics of both models, as ``warm AUC`` and ``cold AUC``."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    known, new = halves(benchmark, draw)
    first = with_objects(benchmark, known)
    trained = train_method(FIRST, dataclasses.replace(first, samples={**first.samples, "val": ()}), draw)
    few = draw_images(with_objects(benchmark, new), shots, draw)
    with tempfile.TemporaryDirectory() as folder:
        store_learned(Path(folder), trained)
        warm = train_method(SECOND, few, draw, Path(folder))
    cold = train_method(SECOND, few, draw)
    return {
        f"{name} {metric}": value
        for name, model in (("warm", warm), ("cold", cold))
        for metric, value in test_metrics(model, few).items()
    }


def store_learned(folder: Path, model: Model) -> None:
    """A model directory of what a model learned."""
    write_model(folder, model, ModelInfo("refiner", "first", "", "", 0, {}), with_backbone=False)


def starts_table(found: Sequence[StudyFigures]) -> list[str]:
    """Mean and 95 % interval of both starts, and of their difference by draw."""
    lines = table_head("closed world", *MEASURED)
    for name, title in (("cold", "without"), ("warm", "from the other half")):
        lines.append(table_row(title, *(spread([one[f"{name} {m}"] for one in found]) for m in MEASURED)))
    gains = (
        spread([difference(one[f"warm {metric}"], one[f"cold {metric}"]) for one in found])
        for metric in MEASURED
    )
    return [*lines, table_row("difference", *gains)]


def difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def warm_start_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments warm-start", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder; an existing study resumes")
    parser.add_argument("--dataset", type=Path, required=True, help="dataset folder")
    parser.add_argument("--shots", type=positive, default=4, help="images a pair of the second half")
    parser.add_argument("--draws", type=positive, default=5, help="divisions of the objects")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = warm_start_parser().parse_args(arguments)
    benchmark = load_benchmark(options.dataset)
    backbone, _ = zero_shot_model("tiny")
    found = []
    for draw in range(options.draws):
        compute: Callable[[], StudyFigures] = partial(compare_starts, benchmark, options.shots, draw)
        learning = [method_config(method, draw).model_dump(mode="json") for method in (FIRST, SECOND)]
        determinants = determinants_of(benchmark, backbone, shots=options.shots, draw=draw, learning=learning)
        file = options.out / f"{options.shots}-{draw}.json"
        found.append(kept_figures(file, determinants, compute))
        print(f"draw {draw}: {found[-1]}", file=sys.stderr, flush=True)
    print("\n".join(starts_table(found)))
