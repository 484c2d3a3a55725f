"""What an evaluation chooses, on validation alone: threshold or lambda of the feasibility prior."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import RuntimeOptions
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.evaluation.feasibility.feasibility import (
    FeasibilityAdjustment,
    FeasibilityMode,
    Similarity,
    candidate_values,
    make_adjustment,
    pair_feasibility,
)
from refiner_cli.evaluation.feasibility.threshold_sweep import ThresholdStream
from refiner_cli.evaluation.metrics.bias_sweep import Protocol, curve
from refiner_cli.evaluation.scoring import Progress, WorldScorer, score_split, silent
from refiner_cli.files import write_json

FIT_FILE = "feasibility.json"


@dataclass(frozen=True)
class FeasibilityFit:
    """What was chosen and why: the best open-world AUC on validation, the first of equals."""

    kind: FeasibilityMode
    value: float  # the threshold, or lambda
    source: str  # of the similarities
    protocol: Protocol
    val_auc: float  # percent
    bias: float  # of the best harmonic mean on validation with it
    tried: tuple[tuple[float, float], ...]  # (value, AUC on validation)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "chosen_on": "val"}

    def store(self, run: Path, dataset_fingerprint: str) -> None:
        """Keep the choice, its validation score and the data it was made on beside a run."""
        write_json(run / FIT_FILE, {**self.to_json(), "dataset_fingerprint": dataset_fingerprint})


def fit_feasibility(
    model: Model,
    benchmark: Benchmark,
    kind: FeasibilityMode,
    similarity: Similarity,
    setting: RuntimeOptions,
    *,
    protocol: Protocol = "exact",
    progress: Progress = silent,
) -> tuple[FeasibilityAdjustment | None, FeasibilityFit | None]:
    """Try the whole grid on the validation split in the open world; the test split is not read.

    Returns None twice where there is nothing to choose: ``none``, or no pair is unseen.
    """
    space = benchmark.label_space("val", "open")
    feasible = pair_feasibility(space, similarity)
    values = candidate_values(kind, space, feasible)
    if not values:
        return None, None
    if kind == "mask" and protocol == "exact":
        stream = ThresholdStream(space, model.calibration, feasible, values)
        score_split(model, benchmark, "val", [stream], setting, progress)
        found = stream.curves()
    else:
        jobs = [
            WorldScorer(space, model.calibration, make_adjustment(kind, v, space, feasible, protocol))
            for v in values
        ]
        score_split(model, benchmark, "val", jobs, setting, progress)
        found = [curve(job.stream.summary(), protocol) for job in jobs]
    aucs = [points.area for points in found]
    best = aucs.index(max(aucs))
    chosen = FeasibilityFit(
        kind, values[best], similarity.source, protocol, aucs[best], found[best].best_bias,
        tuple(zip(values, aucs, strict=True)),
    )  # fmt: skip
    return make_adjustment(kind, values[best], space, feasible, protocol), chosen
