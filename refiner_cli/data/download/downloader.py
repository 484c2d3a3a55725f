"""Datasets by name: plan, fetch, prepare, verify, and publish them.

Whatever ends a run - an error, Ctrl-C, SIGKILL, a power cut - the next one resumes it: archives are
kept in parts, an unfinished dataset in a folder of its own, and the complete one appears in one
rename after its content was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event

from refiner_cli.data.disk import locked, os_errors_as
from refiner_cli.data.download.archive import Archive, ArchiveError
from refiner_cli.data.download.archive_fetcher import ArchiveFetcher, PlannedFile
from refiner_cli.data.download.catalog import Catalogue, Dataset, Source
from refiner_cli.data.download.content import open_archive
from refiner_cli.data.download.datasets_dir import DatasetsDir
from refiner_cli.data.download.lockfile import Lockfile
from refiner_cli.data.download.manual import ManualArchives, recognise
from refiner_cli.data.download.mirrors import RetryPolicy
from refiner_cli.data.download.prepare import prepare
from refiner_cli.data.download.verify import Verification, verify, verify_vectors
from refiner_cli.data.progress import Notice, Report, silent
from refiner_cli.errors import FetchError, RefinerError, UsageError

Maker = Callable[[Path], object]  # makes a dataset of the kind 'made' in a folder that it creates


@dataclass(frozen=True)
class Downloaded:
    """A dataset that is ready.

    Attributes:
        already: it existed before.
        verification: None for word vectors, and for datasets that were verified earlier.
    """

    dataset: Dataset
    folder: Path
    already: bool
    verification: Verification | None


@dataclass(frozen=True)
class Downloader:
    """Gets datasets of a catalogue into a folder.

    Attributes:
        makers: a function for each dataset of the kind 'made'.
        workers: processes that decode images while verifying.
        stop: set it from another thread to end early; everything is kept.
    """

    place: DatasetsDir
    catalogue: Catalogue
    makers: Mapping[str, Maker] = field(default_factory=dict)
    workers: int = 1
    report: Report = silent
    stop: Event = field(default_factory=Event)
    policy: RetryPolicy = field(default_factory=RetryPolicy)

    def plan(self, datasets: Sequence[Dataset], by_hand: ManualArchives | None = None) -> list[PlannedFile]:
        """What :meth:`download` would fetch, with the sizes that servers state. Nothing is written."""
        return self._fetcher().plan(datasets, by_hand or ManualArchives())

    def download(self, datasets: Sequence[Dataset], given: Sequence[Path] = ()) -> list[Downloaded]:
        """Get every dataset that does not exist yet. One that fails does not stop the others.

        Args:
            given: archives fetched by hand, recognised by name or content; for a single dataset only.

        Raises:
            UsageError: a given file is none of the dataset's archives.
            FetchError: fetching or verification failed; the hint says how to continue.
            DatasetError: an archive holds a malformed, hostile or withdrawn dataset.
            StoppedError: ``stop`` was set.
        """
        if given and len(datasets) != 1:
            raise UsageError("Archives given by hand belong to one dataset.", hint="Name just one.")
        if not given and all(map(self.is_ready, datasets)):  # nothing is written: the folder may be read-only
            return [
                Downloaded(dataset, self.place.folder(dataset), already=True, verification=None)
                for dataset in datasets
            ]
        with os_errors_as(f"creating {self.place.root}"):
            self.place.archives.mkdir(parents=True, exist_ok=True)
        earlier = frozenset(file.name for file in self.place.archives.iterdir())
        by_hand = recognise(datasets[0], given, self._lockfile()) if given else ManualArchives()
        failed = self._fetcher().fetch(datasets, by_hand)

        def get(dataset: Dataset) -> Downloaded:
            lacking = [failed[source.file] for source in dataset.sources if source.file in failed]
            if lacking:
                raise lacking[0]
            return self._build(dataset, by_hand, earlier)

        return _each(get, datasets)

    def is_ready(self, dataset: Dataset) -> bool:
        """Whether a dataset is there and was verified."""
        status = self.place.status(dataset)
        return status.present and bool(status.verified)

    def reverify(self, datasets: Sequence[Dataset]) -> list[Downloaded]:
        """Like :meth:`download` for existing datasets: only :meth:`verify` them, every one."""
        return _each(
            lambda dataset: Downloaded(
                dataset, self.place.folder(dataset), already=True, verification=self.verify(dataset)
            ),
            datasets,
        )

    def verify(self, dataset: Dataset) -> Verification | None:
        """Check an existing dataset again, and note the result.

        Raises:
            FetchError: it must not be used, or does not exist.
            DatasetError: it cannot be read.
        """
        folder = self.place.folder(dataset)
        if not folder.is_dir():
            raise FetchError(
                f"{dataset.name} is not in {self.place.root}.", hint=f"Run 'refiner download {dataset.name}'."
            )
        try:
            verification = self._inspect(dataset, folder)
        except RefinerError:
            self._note(lambda: self.place.unmark_verified(folder))
            raise
        self._note(lambda: self.place.mark_verified(folder, verification, dataset.name))
        return verification

    def _note(self, change: Callable[[], None]) -> None:
        """Note a result in a dataset's folder; where it cannot be written to, that costs no result."""
        try:
            change()
        except FetchError as error:
            self.report(Notice(f"The result is not kept with the dataset: {error.message}"))

    def delete_archives(self, datasets: Sequence[Dataset]) -> list[Path]:
        """Remove the archives of the given datasets, except those that other datasets need, too."""
        keep = self.catalogue.shared_sources(datasets)
        sources = {source.file for dataset in datasets for source in dataset.sources} - keep
        files = [self.place.archives / name for name in sorted(sources)]
        removed = [file for file in files if file.is_file()]
        for file in removed:
            with os_errors_as(f"removing {file}"):
                file.unlink()
        return removed

    def pins(self, datasets: Sequence[Dataset]) -> dict[str, dict[str, str]]:
        """Hash, address and time of the first download of every archive of these datasets that has one."""
        lockfile = self._lockfile()
        files = sorted({source.file for dataset in datasets for source in dataset.sources})
        return {file: pin for file in files if (pin := lockfile.pin(file)) is not None}

    # --- preparing and publishing ----------------------------------------------------------------

    def _build(self, dataset: Dataset, by_hand: ManualArchives, earlier: frozenset[str]) -> Downloaded:
        """A dataset in its folder.

        Args:
            earlier: names of the archives that were here before this call, which nothing has checked yet.
        """
        folder = self.place.folder(dataset)
        with locked(self.place.lock(dataset.name), dataset.name, self.report, self.stop):
            if folder.is_dir():
                verified = self.place.status(dataset).verified
                return Downloaded(
                    dataset, folder, already=True, verification=None if verified else self.verify(dataset)
                )
            work = self.place.work(dataset)
            if dataset.kind == "made":
                self.place.discard(dataset)
                self.makers[dataset.name](work)
            else:
                with self._archives(dataset, by_hand, earlier) as archives:
                    prepare(dataset, archives, work, report=self.report, stop=self.stop)
            try:
                verification = self._inspect(dataset, work)
            except RefinerError:
                self.place.discard(dataset)
                raise
            self.place.mark_verified(work, verification, dataset.name)
            self.place.publish(dataset)
        if verification:
            verification = replace(verification, root=folder)
        return Downloaded(dataset, folder, already=False, verification=verification)

    @contextmanager
    def _archives(
        self, dataset: Dataset, by_hand: ManualArchives, earlier: frozenset[str]
    ) -> Iterator[list[Archive]]:
        """All archives of a dataset, open. A damaged one that was fetched is removed, to be fetched again."""
        fetched: list[Path] = []
        for source in dataset.sources:
            path = self.place.archives / source.file
            if source.file not in by_hand.sources and path.is_file():
                if source.file in earlier:
                    self._check_earlier(source, path)
                fetched.append(path)
        with ExitStack() as stack:
            try:
                yield [stack.enter_context(open_archive(path)) for path in (*by_hand.archives, *fetched)]
            except ArchiveError as error:
                stack.close()
                if error.path in fetched:
                    error.path.unlink()
                    self._lockfile().forget(error.path.name)
                raise

    def _check_earlier(self, source: Source, path: Path) -> None:
        """Hold an archive that lies here against its hash. Raises FetchError; the file stays."""
        try:
            self._lockfile().check(source, path)
        except ArchiveError as error:
            raise ArchiveError(path, error.problem, "Delete it, and run the command again.") from None

    def _inspect(self, dataset: Dataset, folder: Path) -> Verification | None:
        """Verify a folder. Raises FetchError if it must not be used."""
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
                f"{dataset.title} in {folder} does not match the catalogue: {wrong}.",
                hint=f"Remove {self.place.folder(dataset)} if it exists, and run "
                f"'refiner download {dataset.name}' again; or see {dataset.home}.",
            )
        return verification

    def _fetcher(self) -> ArchiveFetcher:
        return ArchiveFetcher(self.place, self.report, self.stop, self.policy)

    def _lockfile(self) -> Lockfile:
        return Lockfile(self.place.root, self.report, self.stop)


def _each(do: Callable[[Dataset], Downloaded], datasets: Sequence[Dataset]) -> list[Downloaded]:
    """The outcome of every dataset. One that fails does not stop the others; the errors come at the end."""
    outcomes: list[Downloaded] = []
    errors: list[RefinerError] = []
    for dataset in datasets:
        try:
            outcomes.append(do(dataset))
        except RefinerError as error:
            errors.append(error)
    if len(errors) > 1:
        raise FetchError(" ".join(dict.fromkeys(map(str, errors))))
    if errors:
        raise errors[0]
    return outcomes
