"""An index of many images: how fast it is re-scored and searched, and in how much memory.

``python -m tests.inference.check_index_scale [--images N] [--pairs P] [--width D] [--folder DIR]``

Synthetic vectors are written once, 200,000 by default. Every figure is a ratio to one bare blocked matrix
product over the same reads: each part is read, and each block converted and multiplied with the texts. Times
are CPU seconds of this process with one thread, so that a busy machine does not decide.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.nn import functional as F

from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import ImageVectors, TextBank
from refiner_cli.data.labels import LabelSpace
from refiner_cli.inference.index import PART_SIZE, Index, IndexInfo, IndexRow
from refiner_cli.inference.indexing import on_device
from refiner_cli.inference.query import QueryVectors, Term
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.search import search_index
from refiner_cli.inference.suggest import suggest_images

BLOCK = 512  # images scored at once
REPEATS = 3  # the fastest counts


def make_synthetic(folder: Path, images: int, width: int) -> Index:
    """An index of random unit vectors, written part by part."""
    chance = torch.Generator().manual_seed(0)
    made = {"model": "m", "preprocessing": "p"}
    index = Index.create(folder, IndexInfo.empty(made, "clip", ["composition"], width, ["photos"]))
    for first in range(0, images, PART_SIZE):
        count = min(PART_SIZE, images - first)
        vectors = F.normalize(torch.randn(count, width, generator=chance), dim=-1)
        rows = [IndexRow(f"photo-{i:09}.jpg", 1, "now", "ok") for i in range(first, first + count)]
        index.replace([], rows, {"composition": vectors})
    return Index.open(folder)


def make_recogniser(pairs: int, width: int) -> Recogniser:
    """A recogniser whose texts are random unit vectors."""
    states, objects = pairs // 40, 40
    names = [(f"state {i}", f"object {j}") for i in range(states) for j in range(objects)]
    model, _ = zero_shot_model("tiny", LabelSpace.from_pairs(names, names[: len(names) // 2]))
    recogniser = Recogniser(model)
    texts = F.normalize(torch.randn(len(names), width, generator=torch.Generator().manual_seed(1)), dim=-1)
    recogniser.bank = TextBank(recogniser.space, texts, None, None)
    return recogniser


def blocks(index: Index, recogniser: Recogniser) -> Iterator[ImageVectors]:
    for part in index.info.parts:
        vectors = index.vectors(part)
        for first in range(0, part.images, BLOCK):
            yield on_device(vectors, slice(first, first + BLOCK), recogniser)


def multiply(index: Index, recogniser: Recogniser) -> None:
    texts = recogniser.bank.pairs.T.contiguous()
    for vectors in blocks(index, recogniser):
        vectors.composition @ texts


def rescore(index: Index, recogniser: Recogniser) -> None:
    for vectors in blocks(index, recogniser):
        recogniser.rank(vectors, top_k=5)


def read_all(index: Index, recogniser: Recogniser) -> None:
    """One pass over the vectors: each is multiplied with one text."""
    text = recogniser.bank.pairs[0]
    for part in index.info.parts:
        vectors = index.vectors(part).composition
        for first in range(0, part.images, 8192):
            vectors[first : first + 8192].float() @ text


def search(index: Index, recogniser: Recogniser) -> None:
    texts = recogniser.bank.pairs[:2]
    terms = (Term("text", "a"), Term("text", "b", sign=-1))
    query = QueryVectors(terms, ("composition",) * 2, texts, torch.tensor([1.0, -1.0]))
    search_index(index, query, 100.0, top=50)


def suggest(index: Index, recogniser: Recogniser) -> None:
    suggest_images(index, recogniser, 50)


def measure(
    work: Callable[[Index, Recogniser], None], index: Index, recogniser: Recogniser
) -> tuple[float, float]:
    """CPU seconds of the fastest run, and the most memory in MiB that it took beside the mapped files."""
    before, peak, done = private_memory(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, private_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    times = []
    with torch.no_grad():
        for _ in range(REPEATS):
            begun = time.process_time()
            work(index, recogniser)
            times.append(time.process_time() - begun)
    done.set()
    watcher.join()
    return min(times), peak


def private_memory() -> float:
    """MiB of this process that are not mapped files; Linux."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--folder", type=Path, help="keeps the index, or takes it from there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary) / "index"
        index = Index.open(folder) if folder.exists() else make_synthetic(folder, given.images, given.width)
        recogniser = make_recogniser(given.pairs, given.width)
        print(f"{index.images:,} images, {len(recogniser.space.pairs):,} pairs, {given.width} wide")
        baselines: dict[str, float] = {}
        for name, work, baseline in (
            ("matrix product", multiply, ""),
            ("re-scoring", rescore, "matrix product"),
            ("one pass", read_all, ""),
            ("search, two terms", search, "one pass"),
            ("suggest 50", suggest, "matrix product"),
        ):
            seconds, memory = measure(work, index, recogniser)
            baselines[name] = seconds
            share = (
                f", {baselines[baseline] / seconds:.0%} of the speed of the {baseline}" if baseline else ""
            )
            print(f"{name}: {seconds:.2f} s, {memory:.0f} MiB{share}", flush=True)


if __name__ == "__main__":
    main()
