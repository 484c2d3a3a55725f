from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data import integrity
from refiner_cli.data.integrity import UnreadableImage, find_unreadable
from refiner_cli.data.progress import StoppedError
from tests.data.conftest import Log
from tests.data.download import published


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(published.photo(number))
    return tmp_path


def check(
    folder: Path, paths: list[str], log: Log, workers: int = 1, stop: Event | None = None
) -> list[UnreadableImage]:
    return find_unreadable(folder, paths, name="x", workers=workers, report=log, stop=stop or Event())


def test_whole_images_have_no_fault(folder: Path, log: Log) -> None:
    assert check(folder, [f"{n}.jpg" for n in range(6)], log) == []
    assert (log.progress("verify")[-1].done, log.progress("verify")[-1].total) == (6, 6)


def test_faults_are_told_apart(folder: Path, log: Log) -> None:
    (folder / "1.jpg").write_bytes(published.photo()[:-100])
    (folder / "2.jpg").write_bytes(b"<html>")
    (folder / "3.jpg").unlink()
    (folder / "4.jpg").write_bytes(b"")
    found = check(folder, [f"{n}.jpg" for n in range(6)], log)
    assert [(fault.path, fault.missing) for fault in found] == [
        ("1.jpg", False),
        ("2.jpg", False),
        ("3.jpg", True),
        ("4.jpg", False),
    ]
    assert "truncated" in found[0].reason.lower()
    assert "not an image in a supported format" in found[1].reason


def test_many_processes_find_what_one_finds(folder: Path, log: Log) -> None:
    """Enough images for two processes; each chunk reports."""
    paths = [f"{n % 6}.jpg" for n in range(2000)] + ["gone.jpg", "5.jpg"] * 100
    (folder / "5.jpg").write_bytes(published.photo()[:-100])
    one, two = check(folder, paths, log), check(folder, paths, log, workers=2)
    assert one == two
    assert len(one) == 333 + 200
    done = [event.done for event in log.progress("verify")]
    assert len(done) == 2 * 18
    assert done[:18] == done[18:] == sorted(done[:18])


def test_without_shared_memory_one_process_does_it_and_says_so(
    folder: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "semaphores_work", lambda: False)
    assert check(folder, ["0.jpg"] * 2000, log, workers=2) == []
    assert "no usable /dev/shm" in log.notices[0]


def test_stops_when_asked(folder: Path, log: Log, stop: Event) -> None:
    stop.set()
    with pytest.raises(StoppedError):
        check(folder, ["0.jpg"], log, stop=stop)


def test_workers_do_not_load_torch() -> None:
    script = (
        "import sys, refiner_cli.data.integrity\n"
        "print({'torch', 'numpy', 'httpx2', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_workers_end_with_a_parent_that_was_killed(folder: Path) -> None:
    script = folder / "script.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from pathlib import Path\n"
        "from threading import Event\n"
        "from refiner_cli.data.integrity import find_unreadable\n"
        "def report(event):\n"
        "    print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    paths = ['0.jpg'] * 200_000\n"
        f"    find_unreadable(Path({str(folder)!r}), paths, name='x', workers=2,\n"
        "                    report=report, stop=Event())\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    workers = [int(pid) for pid in done.stdout.split()]
    assert len(workers) == 2

    def alive() -> list[int]:
        return [pid for pid in workers if Path(f"/proc/{pid}").is_dir() and " Z " not in _stat(pid)]

    deadline = time.monotonic() + 30
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == []


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return " Z "
