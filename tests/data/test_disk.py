from __future__ import annotations

import errno
from pathlib import Path
from threading import Event, Thread, Timer

import pytest

from refiner_cli.data.disk import flush, format_size, locked, os_errors_as, require_free_space
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
    assert log.notices == ["Another process is at work on x.zip; waiting for it."]


def test_waiting_for_a_lock_ends_when_asked(tmp_path: Path, log: Log, stop: Event) -> None:
    with locked(tmp_path / "x.lock", "x", Log(), Event()):
        Timer(0.05, stop.set).start()
        with pytest.raises(StoppedError), locked(tmp_path / "x.lock", "x", log, stop):
            pytest.fail("two hold one lock")


def test_flushing_a_folder_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    flush(tmp_path)
    assert (tmp_path / "a").read_text() == "a"
