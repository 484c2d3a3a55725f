"""The best step: compared by what validation can measure; ties go to the later step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from refiner_cli.data.benchmark import METADATA, load_benchmark, read_pairs, write_metadata, write_pairs
from refiner_cli.training.selection import best_record, is_better, selection_criterion
from tests.conftest import Cli
from tests.training.processes import SETTINGS

Val = dict[str, Any]


def val(**values: float | None) -> Val:
    """Metrics of a validation; everything not given is undefined."""
    return {"S": None, "U": None, "HM": None, "AUC": None} | values


@pytest.mark.parametrize(
    ("metrics", "criterion"),
    [
        (val(S=0.0, U=0.0, HM=0.0, AUC=0.0), "AUC"),  # 0 is a value
        (val(S=1.0, U=2.0, HM=3.0), "HM"),
        (val(S=1.0), "S"),
        (val(U=2.0), "U"),
        (val(), "loss"),
    ],
)
def test_the_criterion_is_the_first_that_is_defined(metrics: Val, criterion: str) -> None:
    assert selection_criterion(metrics) == criterion


@pytest.mark.parametrize(
    ("old", "new", "better"),
    [
        (val(AUC=3.0), val(AUC=4.0), True),
        (val(AUC=4.0), val(AUC=3.0), False),
        (val(AUC=4.0), val(AUC=4.0), True),  # the later one
        (val(AUC=0.0), val(AUC=0.0), True),
        (val(S=40.0), val(S=30.0), False),
        (val(S=40.0), val(S=40.0), True),
        (val(U=40.0), val(U=41.0), True),
    ],
)
def test_a_later_step_is_best_unless_it_is_worse(old: Val, new: Val, better: bool) -> None:
    assert is_better(best_record("b", 2, new), best_record("a", 1, old)) is better
    assert is_better(best_record("b", 2, new), None)


def test_the_loss_decides_where_nothing_else_does_and_a_lower_one_is_better() -> None:
    nothing = val()
    untrained = best_record("a", 0, nothing, None)
    trained, worse = best_record("b", 1, nothing, 2.0), best_record("c", 2, nothing, 3.0)
    assert is_better(trained, untrained)
    assert not is_better(worse, trained)


@pytest.mark.parametrize("kept", ["seen", "unseen"])
def test_the_untrained_model_is_not_the_best_where_validation_has_one_side_only(
    cli: Cli, small_demo: Path, tmp_path: Path, kept: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_demo, data)
    splits = data / "compositional-split-natural"
    train = set(read_pairs(splits / "train_pairs.txt"))
    pairs = tuple(p for p in read_pairs(splits / "val_pairs.txt") if (p in train) == (kept == "seen"))
    write_pairs(splits / "val_pairs.txt", pairs)
    samples = dict(load_benchmark(small_demo).samples)
    samples["val"] = tuple(sample for sample in samples["val"] if sample.pair in pairs)
    (data / METADATA).unlink()
    write_metadata(data / METADATA, samples)
    more = (*SETTINGS, "--set", "train.max_steps=4", "--set", "train.batch_size=16")
    outcome = cli("train", data, "--out", tmp_path / "run", "--json", *more)
    assert outcome.code == 0
    name, missing = ("S", "unseen") if kept == "seen" else ("U", "seen")
    assert outcome.json["criterion"] == name
    if kept == "seen":
        assert outcome.json["best_step"] > 0
    assert f"Validation has no {missing} pair" in outcome.err
