"""Verify a benchmark folder by its content, because publishers state no checksums of the data."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from refiner_cli.data.benchmark import SPLIT_FOLDER, SPLITS, Benchmark, Split, load_benchmark
from refiner_cli.data.download.catalog import Counts, Dataset, Vectors
from refiner_cli.data.download.prepare import refuse_withdrawn
from refiner_cli.data.integrity import UnreadableImage, find_unreadable
from refiner_cli.data.progress import Progress, Report

_LONGEST_LINE = 1 << 20  # bytes of a table of word vectors; a real line has some thousand


@dataclass(frozen=True)
class Verification:
    """The result.

    Attributes:
        problems: why the dataset must not be used, one clause each.
        notes: what a user should know, but may accept.
        missing: images that the metadata names and the folder lacks; such a dataset must not be used either.
        unreadable: images that exist and cannot be decoded. They may have been published so.
    """

    name: str
    root: Path
    counts: Counts
    fingerprint: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: tuple[UnreadableImage, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.problems and not self.missing

    def summary(self) -> str:
        """Everything that is wrong, as one clause."""
        found = [*self.problems]
        if self.missing:
            count = len(self.missing)
            images = "1 image is" if count == 1 else f"{count} images are"
            found.append(f"{images} missing, for example {self.missing[0]!r}")
        return "; ".join(found)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "root": str(self.root),
            "usable": self.usable,
            "counts": self.counts.model_dump(exclude_none=True),
            "fingerprint": self.fingerprint,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "missing": list(self.missing),
            "unreadable": [{"path": fault.path, "reason": fault.reason} for fault in self.unreadable],
        }


def verify(
    root: Path, dataset: Dataset | None, *, workers: int, report: Report, stop: Event, decode: bool = True
) -> Verification:
    """Compare a benchmark folder with its catalogue entry, if it has one, and decode every image.

    With ``decode=False``, for images that were decoded a moment ago, only check that each exists.

    Raises:
        DatasetError: it cannot be read as a benchmark at all, or is a withdrawn release.
        StoppedError: ``stop`` was set.
    """
    benchmark = load_benchmark(root, dataset.name if dataset else None)
    problems, notes = structure(benchmark)
    counts = Counts.of(benchmark)
    if dataset:
        refuse_withdrawn(dataset, benchmark.pairs)
        problems += counts.differences(dataset.expected)
        problems += _split_files(root, dataset)
    paths = [sample.path for split in SPLITS for sample in benchmark.samples[split]]
    if decode:
        found = find_unreadable(
            benchmark.images, paths, name=benchmark.name, workers=workers, report=report, stop=stop
        )
    else:
        found = [
            UnreadableImage(path, "missing", missing=True)
            for path in paths
            if not (benchmark.images / path).is_file()
        ]
    return Verification(
        name=benchmark.name,
        root=root,
        counts=counts,
        fingerprint=benchmark.fingerprint(),
        problems=tuple(problems),
        notes=tuple(notes),
        missing=tuple(fault.path for fault in found if fault.missing),
        unreadable=tuple(fault for fault in found if not fault.missing),
    )


def structure(benchmark: Benchmark) -> tuple[list[str], list[str]]:
    """Problems and notes found from names, pairs and paths alone."""
    problems: list[str] = []
    notes: list[str] = []
    train = benchmark.pairs["train"]
    trained = {state for state, _ in train}, {obj for _, obj in train}
    for role, names, known in zip(
        ("states", "objects"), (benchmark.states, benchmark.objects), trained, strict=True
    ):
        if lacking := [name for name in names if name not in known]:
            problems.append(f"{_some(lacking, role)} in no training pair")
        twins = [n for n, c in Counter(name.casefold() for name in names).items() if c > 1]
        if twins:
            notes.append(f"{_some(twins, role)} spelt in upper and in lower case")
    for split in SPLITS:
        shown = {sample.pair for sample in benchmark.samples[split]}
        if without_image := [" ".join(pair) for pair in benchmark.pairs[split] if pair not in shown]:
            notes.append(f"{_some(without_image, 'pairs')} without an image in {split}")
        problems += _of_foreign_pairs(benchmark, split)
    samples = [sample for split in SPLITS for sample in benchmark.samples[split]]
    if twice := [path for path, count in Counter(sample.path for sample in samples).items() if count > 1]:
        notes.append(f"{_some(twice, 'images')} listed more than once")
    astray = [s.path for s in samples if "/" in s.path and s.path.rsplit("/", 2)[-2] != "_".join(s.pair)]
    if astray and len(astray) < len(samples):
        notes.append(f"{_some(astray, 'images')} in a folder not named after the pair")
    return problems, notes


def _of_foreign_pairs(benchmark: Benchmark, split: Split) -> list[str]:
    """The images of a split whose pair is no candidate there: an unseen pair in training, above all."""
    candidates = {*benchmark.pairs[split], *benchmark.pairs["train"]}
    foreign = [sample.path for sample in benchmark.samples[split] if sample.pair not in candidates]
    if not foreign:
        return []
    lists = " or ".join(dict.fromkeys(f"{name}_pairs.txt" for name in (split, "train")))
    return [f"{_some(foreign, 'images')} in {split} with a pair that is not in {lists}"]


def verify_vectors(file: Path, vectors: Vectors, report: Report, stop: Event) -> list[str]:
    """Problems of a table of word vectors: one word and its numbers per line."""
    words, done, total = 0, 0, file.stat().st_size
    with file.open("rb") as stream:
        while line := stream.readline(_LONGEST_LINE):
            if len(line.split(b" ")) != vectors.dimensions + 1:
                return [
                    f"line {words + 1} of {file.name} does not hold a word and {vectors.dimensions} numbers"
                ]
            words += 1
            done += len(line)
            if words % 10_000 == 0:
                report(Progress("verify", file.name, done, total))
                if stop.is_set():
                    break
    return [] if words == vectors.words else [f"{file.name} holds {words} words, expected {vectors.words}"]


def _split_files(root: Path, dataset: Dataset) -> list[str]:
    found = {
        split: hashlib.sha256((root / SPLIT_FOLDER / f"{split}_pairs.txt").read_bytes()).hexdigest()
        for split in dataset.split_sha256
    }
    return [
        f"{split}_pairs.txt is not the published file (SHA-256 {found[split]})"
        for split, expected in dataset.split_sha256.items()
        if found[split] != expected
    ]


def _some(names: list[str], what: str) -> str:
    """``"2 states (sliced, whole) are"``: all of a few, the first of many."""
    listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"1 {what[:-1]} ({listed}) is" if len(names) == 1 else f"{len(names)} {what} ({listed}) are"
