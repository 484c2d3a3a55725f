"""Processes that decode images, and survive whatever happens to one of them.

Every process is served by a thread of its own over a pipe of its own. A process that dies, however it dies
and whatever the main thread does meanwhile, closes its end of the pipe, so its thread notices. Nothing
here needs shared memory or semaphores: it works where ``/dev/shm`` is small, read-only or missing.

A file is blamed only after it was tried again, alone in a new process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import select
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import TypeAlias

from refiner_cli.data.crop import Crop, Pixels
from refiner_cli.data.image_file import UnreadableError, default_limits
from refiner_cli.data.workers import init_worker
from refiner_cli.files import reason_of
from refiner_cli.inference.sources.content import DecodeTask

DecodeResult: TypeAlias = Pixels | str  # H x W x 3, or why there are no pixels
START_SECONDS = 120.0  # that a process may take to start
CRASHES = 2  # of its own doing that a file may cost before it is blamed
KILLS = 6  # by SIGKILL, which may come from outside or for want of memory
START_FAILURES = 3  # in a row, before this process decodes by itself
TICK_SECONDS = 0.5  # between two looks at the clock


class ProcessLostError(Exception):
    """A decoding process ended, or had to be ended; the message says how."""

    def __init__(self, reason: str, *, by_kill: bool = False) -> None:
        super().__init__(reason)
        self.by_kill = by_kill


class CannotStartError(Exception):
    """A decoding process did not come up."""


def decode_one(task: Path | DecodeTask, crop: Crop) -> DecodeResult:
    """The pixels of an image file, or of an image that lies elsewhere."""
    try:
        return crop.load(task) if isinstance(task, Path) else task.load(crop)
    except UnreadableError as reason:
        return str(reason)
    except (ValueError, MemoryError) as error:  # a NUL in the name; no room for the frame
        return reason_of(error)


def serve(pipe: Connection, crop: Crop) -> None:
    """What a decoding process does: take lists of images, return one result per image, in order."""
    init_worker()
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        pipe.send(None)
        while True:
            for task in pipe.recv():
                pipe.send(decode_one(task, crop))


class DecodeProcess:
    """One decoding process, started when it is needed and again whenever it is lost.

    It belongs to one thread at a time; only :meth:`kill` may be called by another.

    Args:
        seconds: that one file may take.
        closing: set when results are no longer wanted.
    """

    starting = threading.Lock()  # multiprocessing's own records are not made for several threads

    def __init__(self, crop: Crop, seconds: float, closing: threading.Event) -> None:
        self.crop, self.seconds, self.closing = crop, seconds, closing
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None
        self.wait: Callable[[], bool] = lambda: True

    def decode(self, files: Sequence[Path | DecodeTask]) -> Iterator[DecodeResult]:
        """Yield the result of every file.

        Raises ProcessLostError at the file that it happened at, CannotStartError before the first.
        """
        pipe = self.pipe or self.start()
        try:
            pipe.send(list(files))
        except OSError:
            raise self.lost() from None
        for _ in files:
            yield self.receive(pipe, self.seconds)

    def start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        try:
            pipe, far_end = context.Pipe()
            process = context.Process(target=serve, args=(far_end, self.crop), daemon=True)
            with self.starting, interrupts_blocked():
                process.start()
            far_end.close()
            self.process, self.pipe, self.wait = process, pipe, make_wait(pipe)
            self.receive(pipe, START_SECONDS)
        except (OSError, ProcessLostError) as error:
            self.stop()
            raise CannotStartError(str(error)) from None
        return pipe

    def receive(self, pipe: Connection, seconds: float) -> DecodeResult:
        waited = 0.0
        try:
            while not self.wait():
                # Ticks are counted, not the time between them: while all processes are stopped, none passes.
                waited += TICK_SECONDS
                if waited >= seconds or self.closing.is_set():
                    self.stop()
                    raise ProcessLostError(f"no result within {seconds:.0f} seconds")
            result: DecodeResult = pipe.recv()
        except (EOFError, OSError):
            raise self.lost() from None
        return result

    def lost(self) -> ProcessLostError:
        """Clear away after the death of the process, and say what it died of."""
        code = self.stop()
        if code is None or code in {-signal.SIGTERM, -getattr(signal, "SIGKILL", signal.SIGTERM)}:
            reason = "the process that decoded it was killed; is there enough memory?"
            return ProcessLostError(reason, by_kill=True)
        return ProcessLostError(f"the process that decoded it died ({name_exit(code)})")

    def stop(self) -> int | None:
        """End the process and return its exit code, None if that is not known."""
        process, pipe, self.process, self.pipe = self.process, self.pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return None
        process.join(0.2)  # if it died by itself, of what
        if process.exitcode is None:
            process.kill()
            process.join(1)  # one that hangs in the file system cannot end yet
        return process.exitcode

    def kill(self) -> None:
        """Make the thread that waits for the process, if any, notice that it is lost."""
        process = self.process
        if process is not None:
            process.kill()


class DecodePool:
    """Decodes lists of files in several processes.

    Args:
        log: receives a sentence when processes cannot be started and this one decodes instead.
        seconds: after which the process of a file is ended; by default twice the time that decoders are
            given (see DecodeLimits), as not all of them notice.
    """

    def __init__(
        self, workers: int, crop: Crop, log: Callable[[str], None], seconds: float | None = None
    ) -> None:
        self.crop, self.log = crop, log
        self.closing = threading.Event()
        limit = seconds or 2 * default_limits().seconds or float("inf")
        self.processes = [DecodeProcess(crop, limit, self.closing) for _ in range(workers)]
        self.idle: SimpleQueue[DecodeProcess] = SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        self.threads = ThreadPoolExecutor(workers, "decode")
        self.start_failures = 0

    def submit(self, files: Sequence[Path | DecodeTask]) -> Future[list[DecodeResult]]:
        return self.threads.submit(self.decode, files)

    def decode(self, files: Sequence[Path | DecodeTask]) -> list[DecodeResult]:
        process = self.idle.get()
        try:
            return self.decode_with(process, files)
        finally:
            self.idle.put(process)

    def decode_with(self, process: DecodeProcess, files: Sequence[Path | DecodeTask]) -> list[DecodeResult]:
        results: list[DecodeResult] = []
        crashes = kills = 0  # at the next file
        while len(results) < len(files) and not self.closing.is_set():
            begun = len(results)
            rest = files[begun : begun + 1] if crashes or kills else files[begun:]
            try:
                for result in self.results(process, rest):
                    results.append(result)
                    crashes = kills = 0
            except ProcessLostError as loss:
                crashes, kills = crashes + (not loss.by_kill), kills + loss.by_kill
                if crashes >= CRASHES or kills >= KILLS:
                    results.append(str(loss))
                    crashes = kills = 0
        return results

    def results(self, process: DecodeProcess, files: Sequence[Path | DecodeTask]) -> Iterator[DecodeResult]:
        if self.start_failures >= START_FAILURES:
            yield from (decode_one(file, self.crop) for file in files)
            return
        try:
            for result in process.decode(files):
                self.start_failures = 0
                yield result
        except CannotStartError as error:
            self.start_failures += 1
            if self.start_failures == START_FAILURES and not self.closing.is_set():
                self.log(f"processes that decode cannot be started ({error}); decoding in this process")

    def close(self) -> None:
        """End all processes; what is under way is given up."""
        self.closing.set()
        for process in self.processes:
            process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.stop()


def make_wait(pipe: Connection) -> Callable[[], bool]:
    """Wait one tick for a message or the end of a pipe, without the new selector of every ``pipe.poll``."""
    if not hasattr(select, "poll"):
        return lambda: pipe.poll(TICK_SECONDS)
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLIN)
    return lambda: bool(poller.poll(TICK_SECONDS * 1000))


def name_exit(code: int) -> str:
    """``"SIGSEGV"`` or ``"exit code 1"``."""
    with contextlib.suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """A process started inside leaves Ctrl-C to this one, even before its own code runs."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
