"""Processes beside this one: how they start and end. Imports neither torch nor numpy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from typing import TypeVar

from refiner_cli.machine import semaphores_work

WorkItem = TypeVar("WorkItem")
WorkResult = TypeVar("WorkResult")


def init_worker() -> None:
    """In a worker process: ignore SIGINT, and exit when the parent does, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: connection.wait([sentinel]) and os._exit(1), daemon=True).start()


def in_processes(
    work: Callable[[WorkItem], WorkResult], items: Iterable[WorkItem], workers: int, *, chunk: int = 1
) -> Generator[WorkResult, None, None]:
    """``work`` on every item, in their order; in this process with less than two ``workers``, or where no
    others can start.

    Args:
        chunk: items that a process is given at once.

    Raises:
        BrokenExecutor: a process died.
    """
    if workers < 2 or not semaphores_work():
        yield from map(work, items)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, initializer=init_worker)
    try:
        yield from pool.map(work, items, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)
