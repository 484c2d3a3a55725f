"""Several processes of one command, one a device: each works through the units by itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

from refiner_cli.data.workers import init_worker

LOOK_SECONDS = 0.5  # between two looks at the processes


def run_processes(
    devices: Sequence[str], work: Callable[[str], int], watch: Callable[[], None] = lambda: None
) -> list[int | None]:
    """Run ``work(device)`` in a process for each device, and return their exit codes.

    What one of them leaves undone, the others do; all end with this process, however it ends.

    Args:
        work: returns an exit code; it must be importable by name.
        watch: called now and then.
    """
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = [
        context.Process(target=run_device_process, args=(work, device), name=device) for device in devices
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(LOOK_SECONDS / len(processes))
            watch()
    finally:
        for process in processes:
            if process.pid is not None and process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()
    return [process.exitcode for process in processes]


def run_device_process(work: Callable[[str], int], device: str) -> None:
    init_worker()
    raise SystemExit(work(device))
