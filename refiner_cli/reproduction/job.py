"""One training of a reproduction and its evaluation, in a folder of its own.

::

    <method>/seed-0/run/           the training
    <method>/seed-0/result.json    what was measured on test, and what determines it

A result is complete or absent; one of other settings, data, weights or another version is measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from refiner_cli.bench.measure import Peak
from refiner_cli.config import Config, flatten
from refiner_cli.core.model_io.checkpoint import WEIGHTS_FILE, read_model
from refiner_cli.core.runtime.device import RuntimeOptions, pick_device, pick_precision
from refiner_cli.core.runtime.loader import pick_num_workers
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.errors import UsageError
from refiner_cli.evaluation.evaluate import similarity_of
from refiner_cli.evaluation.feasibility.feasibility import FeasibilityAdjustment, FeasibilityMode
from refiner_cli.evaluation.feasibility.fit import FeasibilityFit, fit_feasibility
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.seen_unseen import SweepProtocol
from refiner_cli.evaluation.scoring import ProgressFn, measure_split, no_progress
from refiner_cli.files import sha256, write_json
from refiner_cli.training.provenance import provenance, run_provenance
from refiner_cli.training.recover import open_or_recover
from refiner_cli.training.run_dir import DatasetRef, Run, is_run, model_folder
from refiner_cli.training.setup import build_trainer, environment, resume_trainer
from refiner_cli.training.state import is_free, result_settings
from refiner_cli.training.trainer import Trainer

RESULT_FILE, RUN_FOLDER = "result.json", "run"
PROTOCOLS: tuple[SweepProtocol, ...] = ("legacy", "exact")
EVAL_BATCH = 64  # images


@dataclass(frozen=True)
class ReproductionJob:
    """What determines one result."""

    folder: Path
    config: Config
    benchmark: Benchmark
    feasibility: FeasibilityMode  # of the masked open world; "none": not measured
    vectors: Path | None  # word vectors that feasibility is computed from; None: the text tower

    @property
    def run(self) -> Path:
        return self.folder / RUN_FOLDER

    @cached_property
    def determinants(self) -> dict[str, Any]:
        """What a stored result must have been made of. Raises what :func:`provenance` raises."""
        return {
            "settings": json.loads(json.dumps(result_settings(self.config.model_dump()))),
            "calibration": self.config.calibration.model_dump(mode="json"),
            "dataset": self.benchmark.fingerprint(),
            **provenance(self.config),
            "feasibility": self.feasibility,
            "vectors": self.vectors.name if self.vectors else "text tower",
        }

    def stored(self) -> dict[str, Any] | None:
        """The result, if it is there; None too for a damaged file or one of something else."""
        try:
            content: dict[str, Any] = json.loads((self.folder / RESULT_FILE).read_bytes())
            return content if content["determinants"] == self.determinants and content["made"] else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def trainer(self, log: LogFn, arguments: list[str]) -> Trainer:
        """The training, new or at its last checkpoint.

        A finished one whose settings of calibration are other ones is calibrated again, not trained.

        Raises UsageError if the folder holds a run of other settings, another version or other weights.
        """
        if not is_run(self.run):
            benchmark = self.benchmark
            ref = DatasetRef(benchmark.name, str(benchmark.root.resolve()), benchmark.fingerprint())
            self.folder.mkdir(parents=True, exist_ok=True)
            made = Run.create(
                self.run, self.config, ref, environment() | provenance(self.config) | {"arguments": arguments}
            )
            return build_trainer(made, self.benchmark, log)
        run = open_or_recover(self.run, log)
        then = result_settings(run.config.model_dump()) | run_provenance(run)
        now = result_settings(self.config.model_dump()) | provenance(self.config)
        other = next((key for key in now if now[key] != then.get(key)), None)
        if other is not None:
            raise UsageError(
                f"The run {self.run} was started with {other} = {then.get(other)!r}, not {now[other]!r}.",
                hint="Repeat the command with what it was started with, or give another --out.",
            )
        asked = {key: (value, key) for key, value in flatten(self.config.model_dump()) if is_free(key)}
        return resume_trainer(run, self.benchmark, log, asked=asked)

    def evaluate(self, made: Mapping[str, str], log: LogFn, progress: ProgressFn = no_progress) -> None:
        """Measure the best checkpoint on test, in every world and by both protocols, and keep the result.

        Feasibility is fitted on validation.

        Args:
            made: when, and with what command.
        """
        began, folder = time.perf_counter(), model_folder(self.run)
        model, info = read_model(folder)
        device, _ = pick_device(self.config.device)
        model.to(device)
        precision, _ = pick_precision(self.config.precision, device)
        workers, _ = pick_num_workers(self.config.train.num_workers, device)
        runtime, peak = RuntimeOptions(precision, EVAL_BATCH, workers), Peak(device)
        wide = self.benchmark.label_space("test", "open")
        spaces = {"closed": self.benchmark.label_space("test"), "open": wide}
        adjustments: dict[str, FeasibilityAdjustment | None] = {}
        fit: FeasibilityFit | None = None
        if self.feasibility != "none":
            log(f"fitting feasibility {self.feasibility} on validation")
            masked = f"open {self.feasibility}"
            spaces[masked] = wide
            similarity = similarity_of(model, self.benchmark, self.vectors)
            adjustments[masked], fit = fit_feasibility(
                model, self.benchmark, self.feasibility, similarity, runtime,
                protocol="legacy", progress=progress,
            )  # fmt: skip
        log("evaluating on test")
        measured = measure_split(
            model, self.benchmark, "test", spaces, runtime, adjustments=adjustments, progress=progress
        )
        steps = [row for row in Run.open(self.run).metrics() if row["kind"] == "step"]
        result = {
            "determinants": self.determinants,
            "method": self.config.method,
            "seed": self.config.seed,
            "step": info.step,
            "val": info.metrics,
            "test": {
                world: {protocol: sweep(m.summary, m.space, protocol).to_json() for protocol in PROTOCOLS}
                for world, m in measured.items()
            },
            "feasibility": fit.to_json() if fit else None,
            "backbone": model.backbone.fingerprint(),
            "weights_sha256": sha256(folder / WEIGHTS_FILE),
            "train_seconds": round(sum(row["seconds"] for row in steps), 1),
            "evaluation_seconds": round(time.perf_counter() - began, 1),
            "evaluation_peak_bytes": peak.read(),
            "made": {**made, **environment()},
        }
        write_json(self.folder / RESULT_FILE, result)
