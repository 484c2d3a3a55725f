"""The archives that datasets need: which are missing, and fetching them, several at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import httpx2 as httpx

from refiner_cli.data.disk import locked, require_free_space
from refiner_cli.data.download.catalog import Dataset, Source
from refiner_cli.data.download.datasets_dir import DatasetsDir
from refiner_cli.data.download.http import HttpMetadata, client, probe
from refiner_cli.data.download.lockfile import Lockfile
from refiner_cli.data.download.manual import ManualArchives
from refiner_cli.data.download.mirrors import RetryPolicy, fetch, fetched_bytes, offline_error
from refiner_cli.data.progress import Notice, Report, silent
from refiner_cli.errors import FetchError, RefinerError

PARALLEL_DOWNLOADS = 4  # files


@dataclass(frozen=True)
class PlannedFile:
    """One archive that a download needs and that is missing.

    Attributes:
        size: bytes of the complete file; None if no server states it.
        have: bytes of an earlier run.
        url: the address that answered; empty if none did.
        offline: no host name of its addresses resolves.
    """

    source: Source
    dataset: Dataset  # the first that needs it
    size: int | None
    have: int
    url: str
    offline: bool = False


@dataclass(frozen=True)
class ArchiveFetcher:
    """Fetches archives into a folder of datasets."""

    place: DatasetsDir
    report: Report = silent
    stop: Event = field(default_factory=Event)
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def plan(self, datasets: Sequence[Dataset], by_hand: ManualArchives) -> list[PlannedFile]:
        """The missing archives, with the sizes that servers state. Nothing is written."""
        missing = self._missing(datasets, by_hand)
        if not missing:
            return []
        with client() as web:
            return self._plan(web, missing)

    def _missing(self, datasets: Sequence[Dataset], by_hand: ManualArchives) -> list[tuple[Source, Dataset]]:
        """Each missing archive once, with the first dataset that needs it."""
        missing: dict[str, tuple[Source, Dataset]] = {}
        for dataset in datasets:
            if not self.place.folder(dataset).is_dir() and not (dataset.by_hand and by_hand.archives):
                for source in dataset.sources:
                    if (
                        source.file not in by_hand.sources
                        and not (self.place.archives / source.file).is_file()
                    ):
                        missing.setdefault(source.file, (source, dataset))
        return list(missing.values())

    def _plan(self, web: httpx.Client, missing: Sequence[tuple[Source, Dataset]]) -> list[PlannedFile]:
        def plan_file(source: Source, dataset: Dataset) -> PlannedFile:
            have = fetched_bytes(self.place.archives / source.file, source.urls)
            remote: HttpMetadata | None = None
            try:
                remote = probe(web, source.urls)
            except httpx.ConnectError:
                return PlannedFile(source, dataset, None, have, "", offline=True)
            return PlannedFile(
                source, dataset, remote.length if remote else None, have, remote.url if remote else ""
            )

        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            return list(pool.map(lambda pair: plan_file(*pair), missing))

    def fetch(self, datasets: Sequence[Dataset], by_hand: ManualArchives) -> dict[str, RefinerError]:
        """Fetch what is needed, several files at once. Returns an error for each file that failed."""
        failed: dict[str, RefinerError] = {}
        missing = self._missing(datasets, by_hand)
        if not missing:
            return failed
        with client() as web:
            planned = self._plan(web, missing)
            # An archive of photos expands to about its own size.
            needed = sum(2 * file.size - file.have for file in planned if file.size is not None)
            require_free_space(
                self.place.root, needed, f"Fetching and unpacking {', '.join(d.name for d in datasets)}"
            )

            def fetch_planned(file: PlannedFile) -> None:
                try:
                    self._fetch_one(web, file)
                except RefinerError as error:
                    failed[file.source.file] = error

            with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
                try:
                    list(pool.map(fetch_planned, planned))
                except BaseException:  # above all Ctrl-C, which reaches only this thread
                    self.stop.set()
                    raise
        return failed

    def _fetch_one(self, web: httpx.Client, file: PlannedFile) -> None:
        source, dataset = file.source, file.dataset
        if not source.urls:
            raise FetchError(
                f"{dataset.title} cannot be fetched automatically.",
                hint=f"Get it in a browser from {dataset.home} and run "
                f"'refiner download {dataset.name} --from-archive FILE' (repeat the option for each file).",
            )
        if file.offline:
            raise offline_error(source, dataset.home)
        target = self.place.archives / source.file
        with locked(self.place.lock(source.file), source.file, self.report, self.stop):
            if not target.is_file():  # else another process has fetched it meanwhile
                fetch(
                    web,
                    source,
                    target,
                    home=dataset.home,
                    accept=self._accept,
                    report=self.report,
                    stop=self.stop,
                    policy=self.policy,
                )

    def _accept(self, source: Source, path: Path, url: str) -> None:
        """Compare a fetched file with its hash, or check and pin it. Raises like :meth:`Lockfile.check`."""
        lockfile = Lockfile(self.place.root, self.report, self.stop)
        if url.startswith("http://") and not source.sha256 and not lockfile.has(source.file):
            self.report(
                Notice(
                    f"{source.file} came over plain HTTP, and its publisher states no checksum; "
                    "it is verified by its content."
                )
            )
        lockfile.check(source, path, url)
