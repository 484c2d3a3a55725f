"""Several processes: equal to one, and none left behind when one dies."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from refiner_cli.core.runtime.distributed import DistributedContext, launched_ranks
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError
from tests.conftest import Cli
from tests.training.processes import SETTINGS, begin_ranks, rows, steps, wait_until


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_row_belongs_to_one_process_and_the_weights_add_up(batch: int, size: int) -> None:
    every = [DistributedContext(rank, size) for rank in range(size)]
    mine = [ranks.shard_rows(range(batch)) for ranks in every if ranks.shard_weight(batch) > 0]
    assert sorted(row for rows in mine for row in rows) == list(range(batch))
    assert sum(ranks.shard_weight(batch) for ranks in every) == pytest.approx(1)
    assert all(ranks.shard_rows(range(batch)) for ranks in every)


@given(st.integers(1, 30), st.integers(1, 9))
def test_the_pairs_are_shared_out_in_order(count: int, size: int) -> None:
    space = LabelSpace.from_pairs([("wet", f"thing{i:02}") for i in range(count)], [])
    shares = [DistributedContext(rank, size).shard_pairs(space) for rank in range(size)]
    if size > count:
        assert all(share is space for share in shares)
    else:
        assert sum((share.pairs for share in shares), ()) == space.pairs
        assert all(share.objects == space.objects for share in shares)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": ""}, {"RANK": "", "WORLD_SIZE": ""}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"}],
)
def test_without_torchrun_there_is_one_process(environment: dict[str, str]) -> None:
    assert launched_ranks(environment).world_size == 1


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": ""},
        {"RANK": "2"},
        {"LOCAL_RANK": "2"},
        {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"WORLD_SIZE": "many"},
        {"MASTER_ADDR": ""},
        {"MASTER_PORT": "http"},
    ],
)
def test_variables_of_torchrun_that_do_not_fit_are_one_sentence(change: dict[str, str]) -> None:
    whole = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    assert launched_ranks(whole) == DistributedContext(1, 2, 0, 2)
    assert launched_ranks(whole | {"LOCAL_WORLD_SIZE": "1"}).local_size == 1
    with pytest.raises(UsageError, match="variables of torchrun do not fit together"):
        launched_ranks(whole | change)


def test_two_processes_with_half_the_batch_equal_one(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    # Batches of 9, which two cannot share evenly.
    more = (*SETTINGS, "--set", "train.batch_size=9", "--set", "train.max_steps=20", "--set", "train.lr=1e-3")
    assert cli("-q", "train", small_demo, "--out", tmp_path / "one", *more).code == 0
    two = begin_ranks(2, small_demo, "--out", tmp_path / "two", *more)
    said = [process.communicate() for process in two]
    assert [process.returncode for process in two] == [0, 0], said
    assert said[1] == ("", "")  # the first process alone speaks
    assert "shared between them; 2 share the free memory of this machine" in said[0][1]
    ours, theirs = (
        load_file(tmp_path / name / "checkpoints" / "step-00000020" / "model.safetensors")
        for name in ("one", "two")
    )
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    losses = [
        [row["loss"] for row in rows(tmp_path / name) if row["kind"] == "step"] for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert len(losses[0]) == 20


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_process_ends_the_other_with_a_sentence_and_a_checkpoint(
    small_demo: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first, second = begin_ranks(2, small_demo, "--out", run, *SETTINGS, "--set", "train.batch_size=8")
    wait_until(lambda: steps(run) >= 2, first)
    second.send_signal(signal.SIGKILL)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "Another process of this training ended or cannot be reached" in said
    assert "Traceback" not in said
    second.communicate()
    done = steps(run)
    assert (run / "checkpoints" / f"step-{done:08d}").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_to_one_process_stops_both_with_the_state_saved(small_demo: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = begin_ranks(2, small_demo, "--out", run, *SETTINGS, "--set", "train.batch_size=8")
    wait_until(lambda: steps(run) >= 2, first)
    second.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (130, 143)
    assert f"stopped after step {steps(run)}" in said
    assert (run / "checkpoints" / f"step-{steps(run):08d}").is_dir()
