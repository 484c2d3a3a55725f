"""``python -m refiner_cli.experiments few-shot --out DIR``: what 1 to 16 images a pair are worth.

From the training split of a benchmark, a few images of every pair are drawn; nothing is validated on. The
methods learn from these and are measured on the complete test split, in the closed world:

- CLIP zero-shot, which learns nothing; image vectors are means over four shifted views, as Refiner's;
- a linear probe: logistic regression of states and of objects on the frozen image vectors, whose
  log-probabilities are added. The weight of its penalty is the best of three **on the test split**, so
  that the rival is not put at a disadvantage;
- CSP, on the frozen image vectors;
- Refiner, with the recipe for a few photos: calibrated by cross-validation as it is, and without.

HM and AUC take every seen-unseen bias; "HM, own bias" is the harmonic mean at the one that the model has.

An interrupted study resumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from refiner_cli.config import Config
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.calibration import Calibration
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark, Sample, load_benchmark
from refiner_cli.data.labels import Pair
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.scoring import image_batches, measure_split
from refiner_cli.experiments.arguments import positive
from refiner_cli.experiments.linear_probe import PENALTIES, probe_metrics
from refiner_cli.experiments.plan import demo_folder
from refiner_cli.experiments.result_file import StudyFigures, determinants_of, kept_figures
from refiner_cli.experiments.tables import table_head, table_row
from refiner_cli.files import atomic_file
from refiner_cli.inference.encoded import EncodedBenchmark, encode_benchmark
from refiner_cli.recipes import recipe_for
from refiner_cli.settings import resolve
from refiner_cli.training.run_dir import DatasetRef, Run, model_folder
from refiner_cli.training.setup import build_trainer
from refiner_cli.training.warm_start import initial_layer, store_initial

SHOTS = (1, 2, 4, 8, 16)
RUNTIME = RuntimeOptions(torch.float32, 64, 0)
FIXED = {
    "backbone": "tiny",
    "device": "cpu",
    "precision": "fp32",
    "train.num_workers": 0,
    "train.eval_every": 9999,
}
MEASURED = ("S", "U", "HM", "AUC")
OWN_BIAS = "HM, own bias"
SHOWN = ("AUC", OWN_BIAS, "U", "S")
VIEWS: Final = 4
# The 0.975 quantiles of Student's t by degrees of freedom, where the expansion below is not exact enough.
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
    FewShotMethod("plain", "Refiner, recipe few without cross-validation", "few", {"calibration.folds": 0}),
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


def test_metrics(model: Model, benchmark: Benchmark) -> StudyFigures:
    """Closed-world metrics on the test split."""
    space = benchmark.label_space("test")
    summary = measure_split(model, benchmark, "test", {"closed": space}, RUNTIME)["closed"].summary
    return shown_figures(summary, sweep(summary, space), model.calibration.bias)


def shown_figures(summary: ScoreSummary, metrics: Metrics, bias: float) -> StudyFigures:
    """The figures of a study; ``bias`` is the model's own."""
    right, seen = summary.correct(bias), summary.truth_seen
    own = statistics.harmonic_mean([100 * float(right[side].mean()) for side in (seen, ~seen) if side.any()])
    return {**{name: getattr(metrics, name) for name in MEASURED}, OWN_BIAS: float(own)}


def method_config(method: FewShotMethod, seed: int, start: Path | None = None) -> Config:
    """The settings of a training.

    Args:
        start: a model directory to take over from.
    """
    initial = initial_layer(str(start), start) if start else None
    named = {"init": str(start)} if start else {}
    settings = {**method.settings, **FIXED, **named, "seed": seed}
    return resolve([(method.name, settings)], recipe_for(method.recipe), initial)


def train_method(method: FewShotMethod, benchmark: Benchmark, seed: int, start: Path | None = None) -> Model:
    """A model that learned from the training split, in a run that is thrown away; arguments as above."""
    config = method_config(method, seed, start)
    ref = DatasetRef(benchmark.name, str(benchmark.root), benchmark.fingerprint())

    def fill(place: Path) -> None:
        if start:
            store_initial(place, start)

    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", config, ref, {}, fill=fill)
        for _ in build_trainer(run, benchmark, lambda _: None).fit():
            pass
        return read_model(model_folder(run.folder))[0]


@dataclass(frozen=True)
class FewShotStudy:
    """The figures of one benchmark; results that are in ``out`` and depend on the same are used again.

    Args:
        whole: the complete benchmark.
        every: the same with the image vectors of the backbone.
        zero: CLIP zero-shot on that backbone.
    """

    out: Path
    whole: Benchmark
    every: EncodedBenchmark
    zero: Model
    log: Callable[[str], None]

    @classmethod
    def of(cls, out: Path, name: str, folder: Path, log: Callable[[str], None]) -> FewShotStudy:
        whole = load_benchmark(folder, name)
        zero, _ = zero_shot_model("tiny", whole.vocabulary)
        zero.calibration = Calibration(tta_shifts=VIEWS)
        splits = {split: image_batches(zero, whole, split, RUNTIME) for split in ("train", "test")}
        return cls(out / name, whole, encode_benchmark(zero, whole, splits), zero, log)  # type: ignore[arg-type]

    def results(
        self, shots: Sequence[int], draws: int, methods: Sequence[FewShotMethod]
    ) -> dict[str, list[list[StudyFigures]]]:
        """Figures by method, shots and draw."""
        found = {"clip": [[test_metrics(self.zero, self.every)]] * len(shots)}
        for method in methods:
            found[method.name] = [
                [self.figures(method, count, draw) for draw in range(draws)] for count in shots
            ]
        return found

    def figures(self, method: FewShotMethod, shots: int, draw: int) -> StudyFigures:
        """The test metrics of one draw, computed unless they are kept."""
        few = draw_images(self.whole, shots, draw)
        learning: Any = PENALTIES
        if method is not LINEAR_PROBE:
            learning = method_config(method, draw).model_dump(mode="json")
        determinants = determinants_of(few, self.zero, vectors=method.on_vectors, learning=learning)
        file = self.out / method.name / f"{shots}-{draw}.json"
        found = kept_figures(file, determinants, lambda: self.learn(method, few, draw))
        self.log(f"{self.whole.name} {method.name} {shots} shots, draw {draw}: {found}")
        return found

    def learn(self, method: FewShotMethod, few: Benchmark, draw: int) -> StudyFigures:
        """Train and measure."""
        torch.set_num_threads(1)  # the order of sums depends on the number of threads
        encoded = with_vectors(few, self.every)
        if method is LINEAR_PROBE:
            return shown_figures(*probe_metrics(encoded), bias=0.0)
        used = encoded if method.on_vectors else few
        return test_metrics(train_method(method, used, draw), used)


def run_study(
    out: Path, data: Mapping[str, Path], shots: Sequence[int], draws: int, methods: Sequence[FewShotMethod],
    log: Callable[[str], None],
) -> str:  # fmt: skip
    """All figures that are not there yet, and the tables."""
    parts = []
    titles = {"clip": "CLIP zero-shot", **{method.name: method.title for method in methods}}
    for name, folder in data.items():
        results = FewShotStudy.of(out, name, folder, log).results(shots, draws, methods)
        parts += [f"### {name}", "", *shots_table(results, titles, shots), ""]
        with atomic_file(out / "few-shot.md") as part:
            part.write_text("\n".join(parts), "utf-8")
    return "\n".join(parts)


def shots_table(
    results: Mapping[str, Sequence[Sequence[StudyFigures]]], titles: Mapping[str, str], shots: Sequence[int]
) -> list[str]:
    """A table by method and shots for every metric."""
    lines: list[str] = []
    for metric in SHOWN:
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
    half = t_quantile(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return f"{statistics.mean(known):.1f} ± {half:.1f}"


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t, half the width of a 95 % interval in standard errors.

    From 10 degrees of freedom on by its Cornish-Fisher expansion around the normal quantile (Abramowitz and
    Stegun, 26.7.5), which is right to three decimals there.
    """
    if freedom in T_QUANTILES:
        return T_QUANTILES[freedom]
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96,
             (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)  # fmt: skip
    return sum(term / freedom**power for power, term in enumerate(terms))


def few_shot_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments few-shot", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder; an existing study resumes")
    parser.add_argument("--dataset", type=Path, nargs="*", default=[], help="dataset folders beside the demo")
    parser.add_argument("--shots", type=positive, nargs="+", default=list(SHOTS), help="images a pair")
    parser.add_argument("--draws", type=positive, default=5, help="draws of these images, a training each")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in LEARNED], help="these only")
    parser.add_argument("--no-demo", action="store_true", help="leave the demo benchmark out")
    return parser


def main(arguments: Sequence[str]) -> None:
    options = few_shot_parser().parse_args(arguments)
    data = {folder.name: folder for folder in options.dataset}
    if len(data) < len(options.dataset) or "demo" in data:
        few_shot_parser().error("--dataset: the folders need different names, other than demo")
    if options.no_demo and not data:
        few_shot_parser().error("--no-demo leaves nothing to study: add --dataset")
    if not options.no_demo:
        data["demo"] = demo_folder(options.out / "data" / "seed-0", 0)
    methods = [m for m in LEARNED if options.methods is None or m.name in options.methods]
    text = run_study(
        options.out, data, options.shots, options.draws, [LINEAR_PROBE, *methods],
        lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    sys.stdout.write(text + "\n")
