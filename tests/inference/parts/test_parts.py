"""Units of work: claimed once, taken over from lost processes, written whole."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from refiner_cli.errors import InputError, RefinerError, UsageError
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.index import Index, IndexInfo, is_index
from refiner_cli.inference.parts.index_units import BEGINNING, INDEX_LEASE, UNITS_FOLDER, list_units
from refiner_cli.inference.parts.lease import Leases, machine_id
from refiner_cli.inference.parts.plan import LEASES, LOG, PartPlan, discard_parts, open_plan, read_plan
from refiner_cli.inference.parts.share import Share, launched_share, parse_share
from refiner_cli.inference.parts.work import WorkLog, count_rows, merge_parts, run_units
from refiner_cli.inference.scan import NO_FILTER, ImageFile
from refiner_cli.inference.sources.content import Failed
from refiner_cli.inference.sources.file_list import FileList
from refiner_cli.inference.sources.places import Places
from tests.conftest import ROOT
from tests.inference.parts.generated import MADE, NamedImages, plan_of
from tests.inference.parts.workers import write_names


def test_a_part_is_every_nth_unit() -> None:
    shares = [parse_share(f"{number}/3") for number in (1, 2, 3)]
    taken = [list(share.units(10, start=7)) for share in shares]
    assert sorted(chain.from_iterable(taken)) == list(range(10))
    assert sorted(taken[1]) == [1, 4, 7]
    for wrong in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(UsageError):
            parse_share(wrong)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "2"}, (2, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "10", "SLURM_ARRAY_TASK_MIN": "1"}, (6, 10)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MAX": "2"}, (0, 3)),
        ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "10",
          "SLURM_ARRAY_TASK_STEP": "2"}, (3, 5)),
    ],
)  # fmt: skip
def test_slurm_and_torchrun_say_which_part(environment: dict[str, str], share: tuple[int, int]) -> None:
    found = launched_share(environment)
    assert (found.index, found.count) == share


def test_numbers_of_a_launcher_that_do_not_fit_are_wrong_usage() -> None:
    for environment in (
        {"WORLD_SIZE": "4", "RANK": "4"}, {"WORLD_SIZE": "4"}, {"SLURM_ARRAY_TASK_ID": "x"},
        {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "3"},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            launched_share(environment)


@contextlib.contextmanager
def leases_of(folder: Path, machine: str, seconds: float = 30) -> Iterator[Leases]:
    found = Leases(folder, seconds, machine)
    try:
        yield found
    finally:
        found.close()


def test_one_of_many_gets_a_lease(tmp_path: Path) -> None:
    got = []
    with contextlib.ExitStack() as stack:
        all_leases = [stack.enter_context(leases_of(tmp_path, str(i % 3))) for i in range(8)]
        start = threading.Barrier(8)

        def claim(leases: Leases) -> None:
            start.wait()
            got.append(leases.claim("unit"))

        threads = [threading.Thread(target=claim, args=(one,)) for one in all_leases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(one is not None for one in got) == 1


def test_a_lease_that_is_renewed_stays_and_one_that_is_not_is_taken_over(tmp_path: Path) -> None:
    seconds = 0.4
    with leases_of(tmp_path, "here", seconds) as mine, leases_of(tmp_path, "there", seconds) as others:
        assert mine.claim("unit")
        end = time.monotonic() + 3 * seconds
        while time.monotonic() < end:
            assert others.claim("unit") is None
            time.sleep(0.05)
        mine.close()  # no sign of life from now on
        began = time.monotonic()
        while others.claim("unit") is None:
            time.sleep(0.02)
        assert time.monotonic() - began >= seconds / 2
        with leases_of(tmp_path, "elsewhere", seconds) as third:
            assert third.claim("unit") is None
        others.release("unit")
        assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, time
from pathlib import Path
from refiner_cli.inference.parts.lease import Leases
assert Leases(Path(sys.argv[1]), 3600).claim("unit")
print("held", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the lock of a file tells at once only there")
def test_on_one_machine_a_killed_process_is_noticed_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        leases = Leases(tmp_path, 3600)
        assert leases.claim("unit") is None
        holder.kill()
        holder.wait()
        assert leases.claim("unit")
        leases.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the lock of a file tells at once only there")
def test_whoever_waits_lists_an_index_whose_holder_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path / UNITS_FOLDER)
    info = IndexInfo.empty({}, "m", ["composition"], 4, [])
    (plan.folder / BEGINNING).write_text(info.model_dump_json(by_alias=True))
    for unit in range(plan.units):
        plan.part(unit).write_text("[]")
    refused, claim = threading.Event(), Leases.claim

    def noted_claim(leases: Leases, name: str) -> Path | None:
        file = claim(leases, name)
        if file is None:
            refused.set()
        return file

    with leases_of(plan.folder / LEASES, machine_id()) as holder:
        held = holder.claim(INDEX_LEASE)
        assert held
        monkeypatch.setattr(Leases, "claim", noted_claim)
        waiting = threading.Thread(target=list_units, args=(tmp_path, plan), daemon=True)
        waiting.start()
        assert refused.wait(20)
        assert not is_index(tmp_path)
        os.close(holder.held.pop(held))  # as the system does when a process dies
        waiting.join(20)
        assert not waiting.is_alive()
    assert Index.open(tmp_path).info.next_part == plan.units


def test_a_listing_is_made_once_and_holds_what_an_image_is(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "parts")
    assert (plan.units, plan.shards) == (7, [])
    names = [image.name for unit in range(7) for image in plan.images(unit, NO_FILTER)]
    assert names == [f"{i:08d}.jpg" for i in range(20)]
    assert plan_of(tmp_path / "parts", count=0) == plan  # not listed again
    for change in ({"model": "other"}, {"top_k": 2}):
        with pytest.raises(UsageError, match=r"model|top k"):
            open_plan(tmp_path / "parts", MADE | change, Places([NamedImages(1)]), ".jsonl", 3)
    (tmp_path / "parts" / "plan.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        read_plan(tmp_path / "parts")
    discard_parts(tmp_path / "parts")
    with pytest.raises(UsageError, match="no image"):
        plan_of(tmp_path / "parts", count=0)


def test_parts_that_are_only_half_discarded_count_for_no_other_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path)
    for unit in range(plan.units):
        plan.part(unit).write_text("{}")

    def stop(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            discard_parts(tmp_path)
    with pytest.raises(UsageError, match="model"):
        open_plan(tmp_path, MADE | {"model": "other"}, Places([NamedImages(20)]), ".jsonl", 3)
    discard_parts(tmp_path)
    assert plan_of(tmp_path).count_done() == 0


def test_a_list_is_the_same_list_or_none_at_all(tmp_path: Path) -> None:
    def plan_of_list(content: bytes, *, null: bool = False) -> PartPlan:
        places = Places([FileList(io.BytesIO(content), NO_FILTER, null=null)])
        return open_plan(tmp_path, MADE, places, ".jsonl", 3)

    made = plan_of_list(b"a.jpg\nb.jpg\n")
    assert plan_of_list(b"a.jpg\r\nb.jpg") == made == plan_of_list(b"a.jpg\0b.jpg", null=True)
    assert plan_of_list(b"") == made  # a process of a launcher whose list another one has read
    for other in (b"a.jpg\nc.jpg\n", b"a.jpg\nb.jpg\nc.jpg\n"):
        with pytest.raises(UsageError, match="set of files"):
            plan_of_list(other)


def test_a_unit_that_fails_leaves_no_part_and_no_lease(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)

    def fail(unit: int) -> None:
        raise RefinerError("no")

    with pytest.raises(RefinerError, match="no"):
        run_units(plan, Share(), fail)  # type: ignore[arg-type]
    assert plan.count_done() == 0
    assert list((tmp_path / LEASES).iterdir()) == []
    with pytest.raises(RefinerError, match="7 of 7 units"):
        merge_parts(plan, tmp_path / "all.jsonl")


def test_parts_are_merged_in_the_order_of_the_listing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "parts")
    log = WorkLog(tmp_path / "parts" / LOG)
    for share in (Share(1, 2), Share(0, 2)):
        run_units(plan, share, lambda unit: write_names(plan, log, 0, unit))
    (tmp_path / "parts" / "parts" / ".00000003.jsonl.abcd.tmp").write_text("half")
    for suffix in ("jsonl", "csv", "parquet"):
        count = merge_parts(plan, tmp_path / f"all.{suffix}")
        assert (count.images, count.errors) == (20, 20)
        paths = [row["path"] for row in read_rows(tmp_path / f"all.{suffix}")]
        assert paths == [f"{i:08d}.jpg" for i in range(20)]
    assert count_rows(plan) == count
    for file in (tmp_path / "parts" / LOG).iterdir():
        file.unlink()
    assert count_rows(plan) == count  # counted from the parts themselves


def test_what_cannot_be_read_stays_in_a_listing(tmp_path: Path) -> None:
    class Broken(NamedImages):
        def images(self) -> Iterator[ImageFile]:
            yield self.failed("a/", "Permission denied")
            yield ImageFile(Path(os.fsdecode(b"\xff.jpg")), "\\xff.jpg")

    plan = open_plan(tmp_path, MADE, Places([Broken(0)]), ".jsonl", 3)
    first, second = plan.images(0, NO_FILTER)
    assert first.content == Failed("Permission denied")
    assert second.file == Path(os.fsdecode(b"\xff.jpg"))


def start_worker(folder: Path, seconds: float = 0.05, lease: float = 5) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.inference.parts.workers", str(folder), str(seconds), str(lease)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def run_with_kills(folder: Path, workers: int, kills: int, dice: random.Random) -> None:
    """Several processes share a plan; some are killed while they work, and one of those is started again."""
    team = [start_worker(folder) for _ in range(workers)]
    for one in team:
        assert one.stdout
        one.stdout.readline()
    for victim in team[:kills]:
        time.sleep(dice.random() * 0.1)
        victim.kill()
    for one in [*team, start_worker(folder)]:
        one.wait(timeout=120)
        assert one.stdout
        one.stdout.close()
    assert [victim.returncode for victim in team[:kills]] == [-signal.SIGKILL] * kills


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_killed_processes_cost_no_unit_and_repeat_none(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, count=60, size=2)
    run_with_kills(tmp_path, 2, 1, random.Random(5))
    assert plan.count_done() == plan.units == 30
    names = [row["path"] for unit in range(30) for row in read_rows(plan.part(unit))]
    assert names == [f"{i:08d}.jpg" for i in range(60)]
    lines = [line for file in (tmp_path / LOG).iterdir() for line in file.read_text().splitlines()]
    noted = [json.loads(line)["unit"] for line in lines]
    assert len(noted) == len(set(noted)) >= 29  # the line of a killed process may be missing
    assert {file.suffix for file in (tmp_path / "parts").iterdir()} == {".jsonl"}
