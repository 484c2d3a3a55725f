"""``python -m refiner_cli.experiments few-shot --out DIR``: what 1 to 16 images a pair are worth.

From the training split of a benchmark, a few images of every pair are drawn; nothing is validated on. The
methods learn from these and are measured on the complete test split, in the closed world:

- CLIP zero-shot, which learns nothing;
- a linear probe: logistic regression of states and of objects on the frozen image vectors, whose
  log-probabilities are added. The weight of its penalty is the best of three **on the test split**, so
  that the rival is not put at a disadvantage;
- CSP, on the frozen image vectors;
- Refiner, with the recipe for own photos and with the one for a few photos.

An interrupted study resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark, Sample, load_benchmark
from refiner_cli.data.labels import Pair
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.scoring import WorldScorer, image_batches, measure_split
from refiner_cli.experiments.plan import demo_folder
from refiner_cli.experiments.tables import table_head, table_row
from refiner_cli.files import atomic_file, write_json
from refiner_cli.inference.encoded import EncodedBenchmark, encode_benchmark
from refiner_cli.recipes import recipe_for
from refiner_cli.settings import resolve
from refiner_cli.training.run_dir import DatasetRef, Run, model_folder
from refiner_cli.training.setup import build_trainer

SHOTS = (1, 2, 4, 8, 16)
RUNTIME = RuntimeOptions(torch.float32, 64, 0)
FIXED = {
    "backbone": "tiny",
    "device": "cpu",
    "precision": "fp32",
    "train.num_workers": 0,
    "train.eval_every": 9999,
}
PENALTIES = (1e-4, 1e-3, 1e-2)
SHOWN = ("S", "U", "AUC")
FewShotFigures = dict[str, float | None]  # metrics by name
# Quantiles of Student's t for a two-sided 95 % interval, by degrees of freedom.
T_QUANTILES = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


@dataclass(frozen=True)
class FewShotMethod:
    """A way to learn from a few images."""

    name: str
    title: str
    recipe: str = ""  # that it starts from
    settings: Mapping[str, Any] = field(default_factory=dict)
    on_vectors: bool = False  # whether it learns from frozen image vectors


LINEAR_PROBE = FewShotMethod("probe", "linear probe", on_vectors=True)
LEARNED = (
    FewShotMethod("csp", "CSP", "few-csp", {"method": "csp"}, on_vectors=True),
    FewShotMethod("own", "Refiner, recipe own", "own"),
    FewShotMethod("few", "Refiner, recipe few", "few"),
)


def draw_images(benchmark: Benchmark, shots: int, draw: int) -> Benchmark:
    """At most ``shots`` training images of every pair, at random; more shots of a draw contain fewer."""
    by_pair: dict[Pair, list[Sample]] = {}
    for sample in benchmark.samples["train"]:
        by_pair.setdefault(sample.pair, []).append(sample)
    chosen: list[Sample] = []
    for pair, found in sorted(by_pair.items()):
        random.Random(f"{draw} {pair}").shuffle(found)
        chosen += found[:shots]
    samples = {**benchmark.samples, "train": tuple(chosen), "val": ()}
    return dataclasses.replace(benchmark, pairs={**benchmark.pairs, "val": ()}, samples=samples)


def with_vectors(few: Benchmark, every: EncodedBenchmark) -> EncodedBenchmark:
    """The drawn images with the vectors that they have in the complete benchmark."""
    place = {sample.path: row for row, sample in enumerate(every.samples["train"])}
    rows = torch.tensor([place[sample.path] for sample in few.samples["train"]])
    vectors = {"train": every.vectors["train"][rows], "test": every.vectors["test"]}
    return EncodedBenchmark(few.name, few.root, few.pairs, few.samples, vectors)  # type: ignore[arg-type]


def test_metrics(model: Model, benchmark: Benchmark) -> FewShotFigures:
    """Closed-world metrics on the test split."""
    space = benchmark.label_space("test")
    measured = measure_split(model, benchmark, "test", {"closed": space}, RUNTIME)["closed"]
    found = sweep(measured.summary, space)
    return {name: getattr(found, name) for name in ("S", "U", "HM", "AUC")}


def train_method(method: FewShotMethod, benchmark: Benchmark, seed: int, start: Path | None = None) -> Model:
    """A model that learned from the training split, in a run that is thrown away.

    Args:
        start: a model directory to take over from.
    """
    from refiner_cli.training.warm_start import initial_layer, store_initial

    recipe = recipe_for(method.recipe)
    initial = initial_layer(str(start), start) if start else None
    named = {"init": str(start)} if start else {}
    config = resolve([(method.name, {**method.settings, **FIXED, **named, "seed": seed})], recipe, initial)
    ref = DatasetRef(benchmark.name, str(benchmark.root), benchmark.fingerprint())
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config, ref, {})
        if start:
            store_initial(run.folder, start)
        for _ in build_trainer(run, benchmark, lambda _: None).fit():
            pass
        return read_model(model_folder(run.folder))[0]


def probe_metrics(benchmark: EncodedBenchmark) -> FewShotFigures:
    """The linear probe with the penalty that is best on test."""
    found = [fixed_probe(benchmark, penalty) for penalty in PENALTIES]
    return max(found, key=lambda metrics: metrics["AUC"] or metrics["S"] or 0.0)


def fixed_probe(benchmark: EncodedBenchmark, penalty: float) -> FewShotFigures:
    """Logistic regression of states and objects on unit vectors; metrics on test."""
    space, train = benchmark.label_space("test"), benchmark.samples["train"]
    scores = []
    for role, names in enumerate((space.states, space.objects)):
        truth = torch.tensor([names.index(sample.pair[role]) for sample in train])
        weights = fit_probe(benchmark.vectors["train"].float(), truth, len(names), penalty)
        scores.append(logits(benchmark.vectors["test"].float(), weights).log_softmax(-1))
    total = scores[0][:, space.pair_state] + scores[1][:, space.pair_object]
    scorer = WorldScorer(space, Calibration())
    scorer.update(total, torch.from_numpy(space.indices([s.pair for s in benchmark.samples["test"]])))
    metrics = sweep(scorer.stream.summary(), space)
    return {name: getattr(metrics, name) for name in ("S", "U", "HM", "AUC")}


def fit_probe(vectors: Tensor, truth: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights ``classes x (D + 1)`` of the penalised logistic regression, by L-BFGS."""
    weights = torch.zeros(classes, vectors.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(vectors, weights), truth) + penalty * weights[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def logits(vectors: Tensor, weights: Tensor) -> Tensor:
    return vectors @ weights[:, :-1].T + weights[:, -1]


def run_study(
    out: Path, data: Mapping[str, Path], shots: Sequence[int], draws: int, methods: Sequence[FewShotMethod],
    log: Callable[[str], None],
) -> str:  # fmt: skip
    """All figures that are not there yet, and the tables."""
    parts = []
    for name, folder in data.items():
        whole = load_benchmark(folder, name)
        zero, _ = zero_shot_model("tiny", whole.vocabulary)
        splits = {split: image_batches(zero, whole, split, RUNTIME) for split in ("train", "test")}
        every = encode_benchmark(zero, whole, splits)  # type: ignore[arg-type]
        results: dict[str, list[list[FewShotFigures]]] = {"clip": [[test_metrics(zero, every)]] * len(shots)}
        for method in (LINEAR_PROBE, *methods):
            results[method.name] = []
            for count in shots:
                made = []
                for draw in range(draws):
                    file = out / name / method.name / f"{count}-{draw}.json"
                    made.append(stored(file, lambda: figures(method, whole, every, count, draw)))  # noqa: B023
                    log(f"{name} {method.name} {count} shots, draw {draw}: {made[-1]}")
                results[method.name].append(made)
        titles = {"clip": "CLIP zero-shot", **{m.name: m.title for m in (LINEAR_PROBE, *methods)}}
        parts += [f"### {name}", "", *shots_table(results, titles, shots), ""]
        with atomic_file(out / "few-shot.md") as part:
            part.write_text("\n".join(parts), "utf-8")
    return "\n".join(parts)


def figures(
    method: FewShotMethod, whole: Benchmark, every: EncodedBenchmark, shots: int, draw: int
) -> FewShotFigures:
    """The test metrics of one draw."""
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    few = draw_images(whole, shots, draw)
    encoded = with_vectors(few, every)
    if method is LINEAR_PROBE:
        return probe_metrics(encoded)
    used = encoded if method.on_vectors else few
    return test_metrics(train_method(method, used, draw), used)


def stored(file: Path, compute: Callable[[], FewShotFigures]) -> FewShotFigures:
    """The content of a result file, which is made if it is missing."""
    if not file.exists():
        write_json(file, compute())
    content: FewShotFigures = json.loads(file.read_text("utf-8"))
    return content


def shots_table(
    results: Mapping[str, Sequence[Sequence[FewShotFigures]]], titles: Mapping[str, str], shots: Sequence[int]
) -> list[str]:
    """AUC by method and shots; then S and U."""
    lines: list[str] = []
    for metric in reversed(SHOWN):
        lines += [f"{metric}, closed world, by images a pair:", ""]
        lines += table_head("", *map(str, shots))
        for name, by_shots in results.items():
            lines.append(table_row(titles[name], *(spread([f[metric] for f in made]) for made in by_shots)))
        lines.append("")
    return lines


def spread(values: Sequence[float | None]) -> str:
    """Mean and half the width of its 95 % interval over draws."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return f"{known[0]:.1f}" if known else "-"
    half = T_QUANTILES.get(len(known) - 1, 1.96) * statistics.stdev(known) / math.sqrt(len(known))
    return f"{statistics.mean(known):.1f} ± {half:.1f}"


def few_shot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments few-shot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder; an existing study resumes")
    parser.add_argument("--dataset", type=Path, nargs="*", default=[], help="dataset folders beside the demo")
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS), help="images a pair")
    parser.add_argument("--draws", type=int, default=5, help="draws of these images, a training each")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in LEARNED], help="these only")
    parser.add_argument("--no-demo", action="store_true", help="leave the demo benchmark out")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = few_shot_parser().parse_args(arguments)
    data = {folder.name: folder for folder in options.dataset}
    if not options.no_demo:
        data["demo"] = demo_folder(options.out / "data" / "seed-0", 0)
    methods = [m for m in LEARNED if options.methods is None or m.name in options.methods]
    text = run_study(
        options.out, data, options.shots, options.draws, methods,
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    sys.stdout.write(text + "\n")
