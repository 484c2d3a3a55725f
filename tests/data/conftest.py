from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data.progress import Notice, Progress
from tests.data.download.server import Site, serving


class Log(list[Progress | Notice]):
    """A report that keeps every event."""

    def __call__(self, event: Progress | Notice) -> None:
        self.append(event)

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self if isinstance(event, Notice)]

    def progress(self, stage: str) -> list[Progress]:
        return [event for event in self if isinstance(event, Progress) and event.stage == stage]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def stop() -> Event:
    return Event()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as running:
        yield running


@pytest.fixture
def splits(shared: Path) -> Path:
    """The real pair lists."""
    return shared / "splits"


@pytest.fixture
def grocery(shared: Path) -> Path:
    """A small benchmark of real photos."""
    return shared / "grocery"
