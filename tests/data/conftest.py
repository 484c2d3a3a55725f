from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data.events import Notice, Progress
from tests.data.server import Site, serving

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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


def shared(name: str) -> Path:
    """A folder of the shared test data, or a skip with the reason."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the shared test data {folder} are not here")
    return folder


@pytest.fixture
def splits() -> Path:
    return shared("splits")


@pytest.fixture
def grocery() -> Path:
    return shared("grocery")
