"""Leases: several processes, on several machines, share units of work through files alone.

::

    leases/00000012.0    held by a process that computes unit 12: its machine, and a sign of life
    leases/00000012.1    by the process that took the unit over when that one was lost

A lease is a new file, which only one process can create. Its holder renews its time; a lease that was not
renewed for so many seconds, by the observer's own clock, is that of a lost process, and the next one may be
created. On one machine nobody has to wait: the holder keeps its file locked, and the system frees the lock
when it dies. Whatever goes wrong, a unit is computed twice and its part written twice, with the same rows.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: only the time-out tells
    fcntl = None  # type: ignore[assignment]

LEASE_SECONDS = 60.0  # without a sign of life, after which a process counts as lost
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_id() -> str:
    """What only the processes of one running system share; "" where nothing says so."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text("ascii").strip()
    return ""


@dataclass
class Leases:
    """The leases of one folder, as one process sees them.

    Args:
        seconds: without a sign of life, after which a process counts as lost.
    """

    folder: Path
    seconds: float = LEASE_SECONDS
    machine: str = field(default_factory=machine_id)
    seen: dict[str, tuple[int, float]] = field(default_factory=dict)  # last sign of a lease, and when it came
    held: dict[Path, int] = field(default_factory=dict)  # open files of this process
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.guard = threading.Lock()
        threading.Thread(target=self.renew, daemon=True, name="leases").start()

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Hold the lease of a name within the block; False: another process has it."""
        file = self.claim(name)
        try:
            yield file is not None
        finally:
            if file is not None:
                self.release(name)

    def do_once(self, name: str, is_done: Callable[[], bool], work: Callable[[], None]) -> None:
        """Have one process do what all wait for; the next one does it where that process is lost."""
        while not is_done():
            with self.claimed(name) as mine:
                if mine and not is_done():
                    work()
                elif not mine:
                    self.ended.wait(0.2)

    def claim(self, name: str) -> Path | None:
        """Create the next lease of a name, if no living process holds it."""
        generation = 0
        while True:
            file = self.folder / f"{name}.{generation}"
            try:
                handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
            except FileExistsError:
                if not self.is_lost(file):
                    return None
                generation += 1
                continue
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(handle, self.machine.encode())  # only now: an empty lease says nothing about its lock
            with self.guard:
                self.held[file] = handle
            return file

    def is_lost(self, file: Path) -> bool:
        """Whether the holder of a lease is gone."""
        try:
            holder, sign = file.read_text("ascii", "replace"), file.stat().st_mtime_ns
        except OSError:  # released meanwhile
            return False
        if holder and holder == self.machine and (unlocked := is_unlocked(file)) is not None:
            return unlocked
        now = time.monotonic()
        before = self.seen.get(file.name)
        if before is None or before[0] != sign:
            self.seen[file.name] = (sign, now)
            return False
        return now - before[1] >= self.seconds

    def release(self, name: str) -> None:
        """Remove every lease of a name, the lost ones first: a later one is not free before they are gone."""
        files = sorted(self.folder.glob(f"{name}.*"), key=lambda file: int(file.suffix[1:] or 0))
        for file in files:
            with contextlib.suppress(OSError):
                file.unlink()
            self.seen.pop(file.name, None)
        with self.guard:
            handles = [self.held.pop(file) for file in files if file in self.held]
        for handle in handles:
            os.close(handle)

    def renew(self) -> None:
        """Give a sign of life for every lease that is held, until :meth:`close`."""
        while not self.ended.wait(self.seconds / 4):
            with self.guard:
                files = list(self.held)
            for file in files:
                with contextlib.suppress(OSError):
                    os.utime(file)

    def close(self) -> None:
        self.ended.set()


def is_unlocked(file: Path) -> bool | None:
    """Whether no process holds the lock of a file that one of this system wrote; None: nobody can tell."""
    if fcntl is None:
        return None
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return True
