"""Work in other processes: in order, and in this one where no others can start."""

import os

import pytest

from refiner_cli.data import workers


def process_of(_: int) -> int:
    return os.getpid()


def test_results_come_in_order_from_other_processes() -> None:
    assert list(workers.in_processes(abs, [-3, -1, -2], 2)) == [3, 1, 2]
    assert os.getpid() not in workers.in_processes(process_of, range(4), 2)


def test_without_semaphores_this_process_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "semaphores_work", lambda: False)
    assert set(workers.in_processes(process_of, range(4), 2)) == {os.getpid()}
