"""Choose the threshold or lambda of the feasibility adjustment on the validation split."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import (
    FeasibilityAdjustment,
    FeasibilityMode,
    Similarity,
    candidate_values,
    make_adjustment,
    pair_feasibility,
)
from refiner_cli.evaluation.feasibility.threshold_sweep import ThresholdStream
from refiner_cli.evaluation.metrics.bias_sweep import seen_unseen_curve
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol
from refiner_cli.evaluation.scoring import ProgressFn, WorldScorer, no_progress, score_split
from refiner_cli.files import write_json

FIT_FILE = "feasibility.json"


@dataclass(frozen=True)
class FeasibilityFit:
    """The chosen value: that of the best open-world AUC on validation, the first of equals."""

    mode: FeasibilityMode
    value: float  # the threshold, or lambda
    source: str  # of the similarities
    protocol: SweepProtocol
    val_auc: float  # percent
    bias: float  # of the best harmonic mean on validation with it
    candidates: tuple[tuple[float, float], ...]  # (value, AUC on validation)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "chosen_on": "val"}

    def store(self, run: Path, dataset_fingerprint: str) -> None:
        """Write the choice, its validation score and the dataset's fingerprint into a run directory."""
        write_json(run / FIT_FILE, {**self.to_json(), "dataset_fingerprint": dataset_fingerprint})


def fit_feasibility(
    model: Model,
    benchmark: Benchmark,
    mode: FeasibilityMode,
    similarity: Similarity,
    runtime: RuntimeOptions,
    *,
    protocol: SweepProtocol = "exact",
    progress: ProgressFn = no_progress,
) -> tuple[FeasibilityAdjustment | None, FeasibilityFit | None]:
    """Evaluate every candidate value on the validation split in the open world; the test split is not read.

    Returns (None, None) where there is nothing to choose: mode ``none``, or no pair is unseen.

    Raises:
        DatasetError: validation has no image of seen or none of unseen pairs, so its AUC is undefined.
    """
    space = benchmark.label_space("val", "open")
    feasible = pair_feasibility(space, similarity)
    values = candidate_values(mode, space, feasible)
    if not values:
        return None, None
    if mode == "mask" and protocol == "exact":
        stream = ThresholdStream(space, model.calibration, feasible, values)
        score_split(model, benchmark, "val", [stream], runtime, progress)
        curves = stream.curves()
    else:
        scorers = [
            WorldScorer(space, model.calibration, make_adjustment(mode, value, space, feasible, protocol))
            for value in values
        ]
        score_split(model, benchmark, "val", scorers, runtime, progress)
        curves = [seen_unseen_curve(scorer.stream.summary(), protocol) for scorer in scorers]
    aucs = [curve.area for curve in curves if curve.area is not None]  # the images decide: all or none
    if not aucs:
        side = "unseen" if curves[0].n_seen else "seen"
        raise DatasetError(
            f"The {mode} cannot be chosen: the validation split of {benchmark.root} has no image of "
            f"{side} pairs.",
            hint="Use --feasibility none.",
        )
    best = aucs.index(max(aucs))
    chosen = FeasibilityFit(
        mode, values[best], similarity.source, protocol, aucs[best], curves[best].best_bias or 0.0,
        tuple(zip(values, aucs, strict=True)),
    )  # fmt: skip
    return make_adjustment(mode, values[best], space, feasible, protocol), chosen
