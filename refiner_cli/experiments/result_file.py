"""The result of a training in a study, kept with what determines it, so that an interrupted study resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refiner_cli._version import __version__
from refiner_cli.core.models.base import Model
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.files import write_json

StudyFigures = dict[str, float | None]  # metrics by name, in percent


def determinants_of(benchmark: Benchmark, backbone: Model, **others: Any) -> dict[str, Any]:
    """What a result depends on: the images with their labels and splits, the weights, the program, and more.

    Args:
        backbone: any model on the backbone of the study.
        others: values that JSON can hold.
    """
    return {
        "refiner": __version__,
        "data": benchmark.fingerprint(),
        "backbone": backbone.backbone.use_fingerprint(),
        **others,
    }


def kept_figures(
    file: Path, determinants: Mapping[str, Any], compute: Callable[[], StudyFigures]
) -> StudyFigures:
    """The figures in a result file; they are computed if it is missing or holds those of anything else."""
    wanted = json.loads(json.dumps(determinants))
    if file.exists():
        content = json.loads(file.read_text("utf-8"))
        if content.get("determinants") == wanted:
            kept: StudyFigures = content["figures"]
            return kept
    figures = compute()
    write_json(file, {"determinants": wanted, "figures": figures})
    return figures
