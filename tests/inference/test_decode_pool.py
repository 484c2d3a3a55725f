"""Decoding processes that die, hang, or cannot be started."""

from __future__ import annotations

import multiprocessing.context
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refiner_cli.data.crop import Crop
from refiner_cli.inference.decode_pool import DecodePool, DecodeResult

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@dataclass(frozen=True)
class Fatal(Crop):
    """A crop whose decoder does something fatal at files called so, as often as their name says."""

    def load(self, file: Path) -> DecodeResult:  # type: ignore[override]
        kind, times = file.stem.split("-")
        done = file.with_suffix(".log")
        before = len(done.read_text()) if done.exists() else 0
        if kind != "good" and before < int(times):
            done.write_text("x" * (before + 1))
            if kind == "hang":
                time.sleep(60)
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "crash": signal.SIGSEGV}[kind])
        return super().load(file)


def draw(folder: Path, *stems: str) -> list[Path]:
    for stem in stems:
        Image.new("RGB", (10, 10), (9, 9, 9)).save(folder / f"{stem}.png")
    return [folder / f"{stem}.png" for stem in stems]


def decode(
    files: list[Path], crop: Crop, seconds: float = 60, log: Callable[[str], None] = print
) -> list[str]:
    """ "ok" or the error of each file, decoded in one process."""
    pool = DecodePool(1, crop, log, seconds)
    try:
        return [one if isinstance(one, str) else "ok" for one in pool.submit(files).result(60)]
    finally:
        pool.close()


def test_a_file_whose_process_was_killed_is_tried_again_and_others_are_not_blamed(tmp_path: Path) -> None:
    files = draw(tmp_path, "good-0", "kill-1", "kill-3", "crash-1", "good-1")
    assert decode(files, Fatal(8, 8)) == ["ok"] * 5


def test_only_the_file_that_processes_die_of_gets_an_error(tmp_path: Path) -> None:
    files = draw(tmp_path, "good-0", "crash-9", "good-1", "kill-99", "good-2")
    results = decode(files, Fatal(8, 8))
    assert [results[i] for i in (0, 2, 4)] == ["ok"] * 3
    assert "SIGSEGV" in results[1]
    assert "killed" in results[3]


def test_a_file_that_never_ends_costs_its_process_and_gets_an_error(tmp_path: Path) -> None:
    results = decode(draw(tmp_path, "good-0", "hang-9", "good-1", "hang-1"), Fatal(8, 8), seconds=2)
    assert results == ["ok", "no result within 2 seconds", "ok", "ok"]


def test_a_process_that_dies_while_nobody_waits_is_noticed(tmp_path: Path) -> None:
    pool = DecodePool(1, Crop(8, 8), print)
    files = draw(tmp_path, "good-0")
    try:
        pool.submit(files).result(60)
        idle = pool.processes[0].process
        assert idle
        idle.kill()
        idle.join()
        (pixels,) = pool.submit(files).result(60)
        assert np.array_equal(pixels, np.full((8, 8, 3), 9))
    finally:
        pool.close()


def test_results_that_nobody_wants_any_more_do_not_delay_the_end(tmp_path: Path) -> None:
    pool = DecodePool(1, Fatal(8, 8), print)
    future = pool.submit(draw(tmp_path, "hang-9"))
    while not (tmp_path / "hang-9.log").exists():
        time.sleep(0.01)
    pool.close()
    assert future.done()


def test_no_shared_memory_and_no_semaphores_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Queue", "SimpleQueue"):
        monkeypatch.setattr(multiprocessing.context.BaseContext, name, refuse)
    assert decode(draw(tmp_path, "good-0", "good-1"), Crop(8, 8)) == ["ok", "ok"]


def test_where_no_process_can_be_started_this_one_decodes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", refuse)
    said: list[str] = []
    assert decode(draw(tmp_path, "good-0", "good-1"), Crop(8, 8), log=said.append) == ["ok", "ok"]
    assert len(said) == 1
    assert "Resource temporarily unavailable" in said[0]
