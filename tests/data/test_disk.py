from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from refiner_cli.data.disk import format_size, locked, os_errors_as, require_free_space
from refiner_cli.data.progress import StoppedError
from refiner_cli.errors import FetchError
from tests.data.conftest import Log


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_in_words(number: int) -> None:
    with pytest.raises(FetchError, match="The disk became full while fetching x"), os_errors_as("fetching x"):
        raise OSError(number, "full")


def test_other_errors_keep_their_reason() -> None:
    with pytest.raises(FetchError, match=r"Fetching x failed: .*denied"), os_errors_as("fetching x"):
        raise PermissionError(errno.EACCES, "denied", "/there")


def test_room_is_required_before_it_is_needed(tmp_path: Path) -> None:
    require_free_space(tmp_path, 1000, "x")
    with pytest.raises(FetchError, match=r"Unpacking needs 1000000\.0 TB, but"):
        require_free_space(tmp_path, 10**18, "Unpacking")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (862_182_613, "862.2 MB"), (2e12, "2.0 TB")],
)
def test_sizes_are_told_as_people_read_them(count: float, text: str) -> None:
    assert format_size(count) == text


def test_a_lock_keeps_others_out_and_says_so(tmp_path: Path, log: Log, stop: Event) -> None:
    order: list[str] = []
    inside = Event()

    def other() -> None:
        inside.wait(30)
        with locked(tmp_path / "x.lock", "x.zip", log, stop):
            order.append("second")

    thread = Thread(target=other)
    thread.start()
    with locked(tmp_path / "x.lock", "x.zip", Log(), stop):
        inside.set()
        while not log.notices:
            stop.wait(0.01)
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]
    assert log.notices == ["Another process holds the lock on x.zip; waiting."]


def test_waiting_for_a_lock_ends_when_asked(tmp_path: Path, log: Log, stop: Event) -> None:
    held, release = Event(), Event()

    def other() -> None:
        with locked(tmp_path / "x.lock", "x", Log(), Event()):
            held.set()
            release.wait(30)

    thread = Thread(target=other)
    thread.start()
    held.wait(30)
    Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError), locked(tmp_path / "x.lock", "x", log, stop):
        pytest.fail("two hold one lock")
    release.set()
    thread.join(30)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL])
def test_a_file_system_without_locks_is_used_without_them(
    tmp_path: Path, log: Log, stop: Event, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", fail)
    with locked(tmp_path / "x.lock", "x", log, stop):
        (tmp_path / "worked").touch()
    assert (tmp_path / "worked").exists()
    assert len(log.notices) == 1
    assert "does not support locks" in log.notices[0]


@pytest.mark.parametrize("parent", ["file", "shut"])
def test_a_lock_file_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, log: Log, stop: Event, monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    (tmp_path / "file").touch()
    if parent == "shut":
        real = os.open

        def fail(path: object, *more: int, **how: int) -> int:
            if str(path).endswith("x.lock"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *more, **how)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", fail)
    with (
        pytest.raises(FetchError, match=r"Locking .* failed"),
        locked(tmp_path / parent / "x.lock", "x", log, stop),
    ):
        pytest.fail("locked")


def test_the_lock_file_stays(tmp_path: Path, log: Log, stop: Event) -> None:
    """A process that waits holds it open: removing it would let a third one lock another file."""
    with locked(tmp_path / "x.lock", "x", log, stop):
        pass
    assert (tmp_path / "x.lock").exists()
