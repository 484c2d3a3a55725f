"""What every format that predictions are converted to has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TextIO

from refiner_cli.data.labels import Pair, name_key
from refiner_cli.inference.convert.answers import Answers
from refiner_cli.printable import json_text


@dataclass(frozen=True)
class ConvertOptions:
    """What some formats need beside the predictions."""

    states: Sequence[str] = ()  # that a labeller may choose, beside those in the predictions
    objects: Sequence[str] = ()
    url_prefix: str | None = None  # of the photos' addresses; None: the format's own
    copy: bool = False  # photos, instead of linking them
    labels: Mapping[Path, Pair] = field(default_factory=dict)  # what people said, by resolved file
    boxes: Path | None = None  # the file that boxes came from


@dataclass(frozen=True)
class Converted:
    """How many images were written, and what to say of them.

    In a note ``{out}`` stands for the file or folder as a word of a shell command, ``{out!r}`` for it as a
    string of Python.
    """

    images: int
    notes: tuple[str, ...] = ()


class AnswerWriter(ABC):
    """A format that predictions can be converted to. One file adds one: see ``table.py``."""

    suffix: ClassVar[str] = ""  # of the file that is written; "": a folder
    needs_labels: ClassVar[bool] = False
    honours_verdicts: ClassVar[bool] = True  # whether only what is sure is written

    @abstractmethod
    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        """Write the answers; what cannot be written is counted in ``answers.left_out``.

        Args:
            target: a new file, or a new, empty folder, that takes its place when it is complete.
        """


def all_names(answers: Answers, options: ConvertOptions) -> tuple[list[str], list[str]]:
    """The states and objects of the predictions, the options and the labels, sorted.

    Predicted names are as the model has them; of another name the one spelling that counts is the model's.
    """
    given = zip(*options.labels.values(), strict=True) if options.labels else ((), ())
    found = []
    for names, more, labels in zip(answers.names(), (options.states, options.objects), given, strict=True):
        known = set(map(name_key, names))
        by_key = {name_key(name): name for name in (*labels, *more)}  # the last one counts
        found.append(sorted(names.union(name for key, name in by_key.items() if key not in known)))
    return found[0], found[1]


def write_json_array(stream: TextIO, items: Iterable[Any]) -> int:
    """Write a JSON array item by item, and return how many there were."""
    count = 0
    stream.write("[")
    for item in items:
        stream.write((",\n" if count else "\n") + json_text(item))
        count += 1
    stream.write("\n]")
    return count
