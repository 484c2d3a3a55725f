"""Datasets by name: plan, fetch, prepare, verify, and let them appear whole.

Whatever ends a run - an error, Ctrl-C, SIGKILL, a power cut - the next one goes on: archives are
kept in parts, a dataset in the making in its own folder, and the finished one appears in one rename
after its content was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

import httpx2 as httpx

from refiner_cli.data.disk import locked, os_errors_as, require_free_space
from refiner_cli.data.download.archive import Archive, ArchiveError, open_archive
from refiner_cli.data.download.catalog import Catalogue, Dataset, Source
from refiner_cli.data.download.datasets_dir import DatasetsDir
from refiner_cli.data.download.fetch import RetryPolicy, fetch, fetched_already
from refiner_cli.data.download.lockfile import Lockfile
from refiner_cli.data.download.manual import ManualArchives, recognise
from refiner_cli.data.download.prepare import prepare
from refiner_cli.data.download.remote import client, probe
from refiner_cli.data.download.verify import Verification, verify, verify_vectors
from refiner_cli.data.progress import Report, silent
from refiner_cli.errors import FetchError, RefinerError, UsageError

Generator = Callable[[Path], object]  # draws a dataset of the kind 'made' into a folder that it creates
PARALLEL_DOWNLOADS = 4  # files fetched at the same time


@dataclass(frozen=True)
class PlannedFile:
    """One archive that a download needs and the store lacks.

    Attributes:
        size: bytes of the whole file; None if no server told.
        have: bytes that an earlier run brought.
        url: the address that answered; empty if none did.
    """

    source: Source
    dataset: Dataset  # the first that needs it
    size: int | None
    have: int
    url: str


@dataclass(frozen=True)
class Outcome:
    """A dataset that is ready.

    Attributes:
        already: it was there before.
        verification: None for word vectors, and for what was there and verified before.
    """

    dataset: Dataset
    folder: Path
    already: bool
    verification: Verification | None


@dataclass(frozen=True)
class Downloader:
    """Brings datasets of a catalogue into a store.

    Attributes:
        makers: for each dataset of the kind 'made', what draws it.
        workers: processes that decode images while verifying.
        stop: set it from another thread to end early; everything is kept.
    """

    store: DatasetsDir
    catalogue: Catalogue
    makers: Mapping[str, Generator] = field(default_factory=dict)
    workers: int = 1
    report: Report = silent
    stop: Event = field(default_factory=Event)
    patience: RetryPolicy = field(default_factory=RetryPolicy)

    def plan(self, datasets: Sequence[Dataset], by_hand: ManualArchives | None = None) -> list[PlannedFile]:
        """What :meth:`download` would fetch, with the sizes that servers tell. Nothing is written."""
        with client() as web:
            return self._plan(web, datasets, by_hand or ManualArchives())

    def download(self, datasets: Sequence[Dataset], given: Sequence[Path] = ()) -> list[Outcome]:
        """Bring every dataset, or find it there already. One that fails does not keep the others back.

        Args:
            given: archives fetched by hand, recognised by name or content; for a single dataset only.

        Raises:
            UsageError: a given file is none of the dataset's archives.
            FetchError: fetching or verification failed; the message says how to go on.
            DatasetError: an archive holds a malformed, hostile or withdrawn dataset.
            StoppedError: ``stop`` was set.
        """
        if given and len(datasets) != 1:
            raise UsageError("Archives given by hand belong to one dataset.", hint="Name just one.")
        with os_errors_as(f"creating {self.store.root}"):
            self.store.archives.mkdir(parents=True, exist_ok=True)
        by_hand = recognise(datasets[0], given, self._pins()) if given else ManualArchives()
        failed = self._fetch(datasets, by_hand)
        outcomes: list[Outcome] = []
        errors: list[RefinerError] = []
        for dataset in datasets:
            lacking = [failed[source.file] for source in dataset.sources if source.file in failed]
            try:
                if lacking:
                    raise lacking[0]
                outcomes.append(self._bring(dataset, by_hand))
            except RefinerError as error:
                errors.append(error)
        if len(errors) > 1:
            raise FetchError(" ".join(dict.fromkeys(map(str, errors))))
        if errors:
            raise errors[0]
        return outcomes

    def reverify(self, dataset: Dataset) -> Outcome:
        """Like :meth:`download` for what is there already: only :meth:`verify` it."""
        return Outcome(dataset, self.store.folder(dataset), already=True, verification=self.verify(dataset))

    def verify(self, dataset: Dataset) -> Verification | None:
        """Check a dataset of the store again, and note the result.

        Raises FetchError if it must not be used or is not there, DatasetError if it cannot be read.
        """
        folder = self.store.folder(dataset)
        if not folder.is_dir():
            raise FetchError(
                f"{dataset.name} is not in {self.store.root}.", hint=f"Run 'refiner download {dataset.name}'."
            )
        try:
            verification = self._inspect(dataset, folder)
        except RefinerError:
            self.store.unmark_verified(folder)
            raise
        self.store.mark_verified(folder, verification, dataset.name)
        return verification

    def delete_archives(self, datasets: Sequence[Dataset]) -> list[Path]:
        """Remove the archives of the given datasets, save those that others of the catalogue need, too."""
        keep = self.catalogue.shared_sources(datasets)
        sources = {source.file for dataset in datasets for source in dataset.sources} - keep
        gone = [file for file in (self.store.archives / name for name in sorted(sources)) if file.is_file()]
        for file in gone:
            file.unlink()
        return gone

    # --- fetching --------------------------------------------------------------------------------

    def _plan(
        self, web: httpx.Client, datasets: Sequence[Dataset], by_hand: ManualArchives
    ) -> list[PlannedFile]:
        wanted: dict[str, tuple[Source, Dataset]] = {}
        for dataset in datasets:
            if not self.store.folder(dataset).is_dir() and not (dataset.by_hand and by_hand.archives):
                for source in dataset.sources:
                    if (
                        source.file not in by_hand.sources
                        and not (self.store.archives / source.file).is_file()
                    ):
                        wanted.setdefault(source.file, (source, dataset))

        def one(source: Source, dataset: Dataset) -> PlannedFile:
            remote = probe(web, source.urls)
            have = fetched_already(self.store.archives / source.file, source.urls)
            return PlannedFile(
                source, dataset, remote.length if remote else None, have, remote.url if remote else ""
            )

        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            return list(pool.map(lambda pair: one(*pair), wanted.values()))

    def _fetch(self, datasets: Sequence[Dataset], by_hand: ManualArchives) -> dict[str, RefinerError]:
        """Fetch what is needed, several files at once. Returns an error for each file that did not come."""
        failed: dict[str, RefinerError] = {}
        with client() as web:
            planned = self._plan(web, datasets, by_hand)
            # What comes out of an archive of photos is about as large as the archive.
            needed = sum(2 * file.size - file.have for file in planned if file.size is not None)
            require_free_space(
                self.store.root, needed, f"Fetching and unpacking {', '.join(d.name for d in datasets)}"
            )

            def one(file: PlannedFile) -> None:
                try:
                    self._fetch_one(web, file)
                except RefinerError as error:
                    failed[file.source.file] = error

            with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
                try:
                    list(pool.map(one, planned))
                except BaseException:  # above all Ctrl-C, which reaches only this thread
                    self.stop.set()
                    raise
        return failed

    def _fetch_one(self, web: httpx.Client, file: PlannedFile) -> None:
        source, dataset = file.source, file.dataset
        if not source.urls:
            raise FetchError(
                f"{dataset.title} cannot be fetched by a program.",
                hint=f"Get it in a browser from {dataset.home} and run "
                f"'refiner download {dataset.name} --from-archive FILE' (once for each file).",
            )
        target = self.store.archives / source.file
        with locked(self.store.lock(source.file), source.file, self.report, self.stop):
            if not target.is_file():  # else another process brought it meanwhile
                fetch(
                    web,
                    source,
                    target,
                    by_hand=dataset.home,
                    accept=self._pins().check,
                    report=self.report,
                    stop=self.stop,
                    patience=self.patience,
                )

    # --- making a folder of it -------------------------------------------------------------------

    def _bring(self, dataset: Dataset, by_hand: ManualArchives) -> Outcome:
        folder = self.store.folder(dataset)
        with locked(self.store.lock(dataset.name), dataset.name, self.report, self.stop):
            if folder.is_dir():
                verified = self.store.status(dataset).verified
                return Outcome(
                    dataset, folder, already=True, verification=None if verified else self.verify(dataset)
                )
            work = self.store.work(dataset)
            if dataset.kind == "made":
                self.store.discard(dataset)
                self.makers[dataset.name](work)
            else:
                with self._archives(dataset, by_hand) as archives:
                    prepare(dataset, archives, work, report=self.report, stop=self.stop)
            try:
                verification = self._inspect(dataset, work)
            except RefinerError:
                self.store.discard(dataset)
                raise
            self.store.mark_verified(work, verification, dataset.name)
            self.store.publish(dataset)
        if verification:
            verification = replace(verification, root=folder)
        return Outcome(dataset, folder, already=False, verification=verification)

    @contextmanager
    def _archives(self, dataset: Dataset, by_hand: ManualArchives) -> Iterator[list[Archive]]:
        """All archives of a dataset, open. A damaged one of ours is removed, to be fetched anew."""
        ours = [
            self.store.archives / source.file
            for source in dataset.sources
            if source.file not in by_hand.sources and (self.store.archives / source.file).is_file()
        ]
        with ExitStack() as stack:
            try:
                yield [stack.enter_context(open_archive(path)) for path in (*by_hand.archives, *ours)]
            except ArchiveError as error:
                stack.close()
                if error.path in ours:
                    error.path.unlink()
                    self._pins().forget(error.path.name)
                raise

    def _inspect(self, dataset: Dataset, folder: Path) -> Verification | None:
        """Raise FetchError for a folder that must not be used."""
        verification = None
        if dataset.vectors:
            problems = [
                problem
                for name in dataset.files
                for problem in verify_vectors(folder / name, dataset.vectors, self.report, self.stop)
            ]
            wrong = "; ".join(problems)
        else:
            verification = verify(folder, dataset, workers=self.workers, report=self.report, stop=self.stop)
            wrong = "" if verification.usable else verification.summary()
        if wrong:
            raise FetchError(
                f"{dataset.title} in {folder} is not what it should be: {wrong}.",
                hint=f"Remove {self.store.folder(dataset)} if it is there, and run "
                f"'refiner download {dataset.name}' again; or see {dataset.home}.",
            )
        return verification

    def _pins(self) -> Lockfile:
        return Lockfile(self.store.root, self.report, self.stop)
