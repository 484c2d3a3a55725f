"""What a benchmark holds, in numbers and as a page to look at."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image, ImageOps

from refiner_cli.data.benchmark import Benchmark, Sample, Split
from refiner_cli.data.decode import read
from refiner_cli.data.image_file import UnreadableError
from refiner_cli.data.labels import Pair
from refiner_cli.files import atomic_file

RAREST = 10  # pairs listed
PICTURES = 48  # samples on the page
SIDE = 112  # pixels of a thumbnail


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
    found: dict[Split, SplitFacts] = {}
    for split, pairs in benchmark.pairs.items():
        images = Counter(sample.pair for sample in benchmark.samples[split])
        rarest = sorted(((pair, images[pair]) for pair in pairs), key=lambda item: (item[1], item[0]))
        seen = sum(pair in train for pair in pairs)
        found[split] = SplitFacts(
            seen, len(pairs) - seen, len(benchmark.samples[split]), tuple(rarest[:RAREST])
        )
    return found


def write_overview(file: Path, benchmark: Benchmark) -> None:
    """Write a self-contained page: counts, rarest pairs, and pictures from all over the benchmark."""
    page = Template(resources.files("refiner_cli.data").joinpath("overview.html").read_text("utf-8"))
    parts = split_facts(benchmark)
    rows = "".join(
        f"<tr><th>{name}<td>{part.seen_pairs:,}<td>{part.unseen_pairs:,}<td>{part.images:,}"
        f"<td>{', '.join(html.escape(f'{s} {o} ({n})') for (s, o), n in part.rarest)}"
        for name, part in parts.items()
    )
    text = page.substitute(
        name=html.escape(benchmark.name),
        states=f"{len(benchmark.states):,}",
        objects=f"{len(benchmark.objects):,}",
        rows=rows,
        pictures="".join(card(benchmark, split, sample) for split, sample in spread(benchmark)),
    )
    with atomic_file(file) as part_file:
        part_file.write_text(text, "utf-8")


def spread(benchmark: Benchmark) -> list[tuple[Split, Sample]]:
    """One sample of evenly spaced pairs, the same for the same benchmark."""
    first: dict[Pair, tuple[Split, Sample]] = {}
    for split, samples in benchmark.samples.items():
        for sample in samples:
            first.setdefault(sample.pair, (split, sample))
    pairs = sorted(first)
    count = min(PICTURES, len(pairs))
    return [first[pairs[i * len(pairs) // count]] for i in range(count)]


def card(benchmark: Benchmark, split: Split, sample: Sample) -> str:
    """One picture with its name; a file that cannot be read is named instead of shown."""
    name = html.escape(" ".join(sample.pair))
    try:
        image = ImageOps.fit(
            read(benchmark.images / sample.path, SIDE), (SIDE, SIDE), Image.Resampling.BICUBIC
        )
    except UnreadableError as error:
        reason = html.escape(f"{sample.path}: {error}")
        return f"<figure><p>{reason}</p><figcaption>{name}</figcaption></figure>"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt=""><figcaption>{name} '
        f"<small>{split}</small></figcaption></figure>"
    )
