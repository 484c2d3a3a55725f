"""A benchmark in numbers, and as a page with sample images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refiner_cli.data.benchmark import Benchmark, Sample, Split
from refiner_cli.data.decode import read
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.data.labels import Pair
from refiner_cli.render import data_url, thumbnail, write_page

RAREST = 10  # pairs listed
SAMPLE_IMAGES = 48  # on the page
SAMPLE_SIDE = 224  # pixels of a thumbnail, shown at about half that size


@dataclass(frozen=True)
class SampleCard:
    """One sample image of the page; if it has no thumbnail, ``error`` says why."""

    name: str
    split: Split
    thumbnail_url: str  # a data URL
    error: str


@dataclass(frozen=True)
class SplitFacts:
    """One split in numbers."""

    seen_pairs: int
    unseen_pairs: int
    images: int
    rarest: tuple[tuple[Pair, int], ...]  # pairs with the fewest images, and how many those are

    def to_json(self) -> dict[str, Any]:
        rarest = [{"state": s, "object": o, "images": n} for (s, o), n in self.rarest]
        return {
            "seen_pairs": self.seen_pairs,
            "unseen_pairs": self.unseen_pairs,
            "images": self.images,
            "rarest": rarest,
        }


def split_facts(benchmark: Benchmark) -> dict[Split, SplitFacts]:
    """Count every split; of equally rare pairs the first by name are listed."""
    train = set(benchmark.pairs["train"])
    facts: dict[Split, SplitFacts] = {}
    for split, pairs in benchmark.pairs.items():
        images = Counter(sample.pair for sample in benchmark.samples[split])
        rarest = sorted(((pair, images[pair]) for pair in pairs), key=lambda item: (item[1], item[0]))
        seen = sum(pair in train for pair in pairs)
        facts[split] = SplitFacts(
            seen, len(pairs) - seen, len(benchmark.samples[split]), tuple(rarest[:RAREST])
        )
    return facts


def write_overview(file: Path, benchmark: Benchmark) -> None:
    """Write a self-contained page: counts, rarest pairs, and sample images from all over the benchmark."""
    write_page(
        file,
        "data/overview.html",
        title=benchmark.name,
        states=len(benchmark.states),
        objects=len(benchmark.objects),
        splits=split_facts(benchmark),
        cards=(sample_card(benchmark, split, sample) for split, sample in sample_images(benchmark)),
    )


def sample_images(benchmark: Benchmark) -> list[tuple[Split, Sample]]:
    """One sample of evenly spaced pairs, the same for the same benchmark."""
    first: dict[Pair, tuple[Split, Sample]] = {}
    for split, samples in benchmark.samples.items():
        for sample in samples:
            first.setdefault(sample.pair, (split, sample))
    pairs = sorted(first)
    count = min(SAMPLE_IMAGES, len(pairs))
    return [first[pairs[i * len(pairs) // count]] for i in range(count)]


def sample_card(benchmark: Benchmark, split: Split, sample: Sample) -> SampleCard:
    """An image with its name; a file that cannot be read is named instead of shown."""
    name = " ".join(sample.pair)
    try:
        image = read(benchmark.images / sample.path, SAMPLE_SIDE)
    except UnreadableError as error:
        return SampleCard(name, split, "", f"{sample.path}: {error}")
    return SampleCard(name, split, data_url(thumbnail(image, SAMPLE_SIDE)), "")
