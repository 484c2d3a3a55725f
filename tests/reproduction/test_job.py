"""A stored result of a reproduction is used only for what it was made with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from refiner_cli.core.towers import tiny
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.errors import UsageError
from refiner_cli.reproduction.job import RESULT_FILE, ReproductionJob
from refiner_cli.settings import resolve
from refiner_cli.training import provenance
from refiner_cli.training.run_dir import CALIBRATION, Run

ONE_VIEW = {"calibration.tta_shifts": (1,), "calibration.hubness_strength": (0.0,)}
OTHERWISE = {"calibration.tta_shifts": (2,), "calibration.hubness_strength": (1.0,)}


def job_of(folder: Path, dataset: Path, settings: dict[str, Any]) -> ReproductionJob:
    fixed = {"backbone": "tiny", "device": "cpu", "precision": "fp32", "train.num_workers": 0}
    config = resolve([("test", {**fixed, **settings})], ("defaults", {"train.batch_size": 8}))
    return ReproductionJob(folder, config, load_benchmark(dataset), "none", None)


def measured(job: ReproductionJob) -> dict[str, Any]:
    """The test figures of a job, computed unless they are stored."""
    if job.stored() is None:
        for _ in job.trainer(lambda _: None, ["test"]).fit():
            pass
        job.evaluate({}, lambda _: None)
    result = job.stored()
    assert result is not None
    return dict(result["test"])


def test_with_other_settings_of_calibration_a_finished_run_is_calibrated_again(
    small_demo: Path, tmp_path: Path
) -> None:
    short = {"method": "clip"}
    first = job_of(tmp_path / "job", small_demo, short | ONE_VIEW)
    plain = measured(first)
    trained = list(Run.open(first.run).metrics())

    other = job_of(first.folder, small_demo, short | OTHERWISE | {"train.num_workers": 1})
    assert other.stored() is None
    training = other.trainer(lambda _: None, ["test"])
    assert training.options.num_workers == 1  # what is free to change is as asked, too
    other = dataclasses.replace(other, config=job_of(first.folder, small_demo, short | OTHERWISE).config)
    figures = measured(other)
    record = json.loads((first.run / CALIBRATION).read_bytes())
    assert (record["settings"]["tta_shifts"], record["calibration"]["tta_shifts"]) == ([2], 2)
    assert list(Run.open(first.run).metrics()) == trained  # and not trained again
    assert figures == measured(job_of(tmp_path / "afresh", small_demo, short | OTHERWISE)) != plain
    assert first.stored() is None


def test_what_another_version_or_other_weights_made_is_not_taken(
    small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(tiny.weights_path(), weights)
    settings = {**ONE_VIEW, "method": "clip", "pretrained": str(weights)}
    measured(job_of(tmp_path / "job", small_demo, settings))

    def refused(named: str) -> None:
        now = job_of(tmp_path / "job", small_demo, settings)  # as another process finds it
        assert now.stored() is None
        with pytest.raises(UsageError, match=f"was started with {named} = "):
            now.trainer(lambda _: None, ["test"])

    with monkeypatch.context() as patch:
        patch.setattr(provenance, "__version__", "99.0")
        refused("refiner")
    assert job_of(tmp_path / "job", small_demo, settings).stored() is not None
    state = load_file(weights)
    save_file({name: value * 1.5 if value.is_floating_point() else value for name, value in state.items()},
              weights)  # fmt: skip
    refused("backbone_files")
    assert (tmp_path / "job" / RESULT_FILE).exists()
