"""Similarity of names from a table of word vectors, such as GloVe's text files.

A line holds a word and its numbers, separated by spaces. Names are lower-cased; those with several
parts are the mean of their parts. The table is read line by line and only what is needed is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import DatasetError
from refiner_cli.evaluation.feasibility.feasibility import Similarity
from refiner_cli.evaluation.metrics.score_summary import FloatArray

# Names of UT-Zappos and C-GQA without a vector of their own, with the words that published work uses.
PUBLISHED_NAMES = {
    "Faux.Fur": "fake fur",
    "Faux.Leather": "fake leather",
    "Full.grain.leather": "thick leather",
    "Hair.Calf": "hair leather",
    "Patent.Leather": "shiny leather",
    "Nubuck": "grainy leather",
    "Boots.Ankle": "ankle boots",
    "Boots.Knee.High": "knee high boots",
    "Boots.Mid-Calf": "midcalf boots",
    "Shoes.Boat.Shoes": "boat shoes",
    "Shoes.Clogs.and.Mules": "clogs shoes",
    "Shoes.Flats": "flats shoes",
    "Shoes.Heels": "heels",
    "Shoes.Loafers": "loafers",
    "Shoes.Oxfords": "oxford shoes",
    "Shoes.Sneakers.and.Athletic.Shoes": "sneakers",
    "dry-erase_board": "dry erase board",
    "trash_can": "trashcan",
    "eiffel_tower": "tower",
}


def word_vector_similarity(file: Path, space: LabelSpace) -> Similarity:
    """Similarity of states and of objects as a table of word vectors has it.

    Raises:
        DatasetError: the file cannot be read, a line of a needed word is malformed, or a name has no vector.
    """
    names = [*space.states, *space.objects]
    vectors = read_vectors(file, {word for name in names for word in spellings(name)})
    missing = [name for name in names if vector_of(name, vectors) is None]
    if missing:
        raise DatasetError(
            f"{file} has no vector for {len(missing)} names, '{missing[0]}' among them.",
            hint="Names are lower-cased and split at '_', '.' and '-'; the text tower needs no file.",
        )
    return Similarity(str(file.name), _cosines(space.states, vectors), _cosines(space.objects, vectors))


def words_of(name: str) -> list[str]:
    return re.split(r"[_.\s]+", PUBLISHED_NAMES.get(name, name).lower().strip("_. "))


def spellings(name: str) -> set[str]:
    """Every word of the table that the name may need; a hyphenated word without a vector is split."""
    return {part for word in words_of(name) for part in (word, *word.split("-"))}


def vector_of(name: str, vectors: dict[str, FloatArray]) -> FloatArray | None:
    """The mean over the name's words, or None where one is missing."""
    parts = [part for word in words_of(name) for part in ([word] if word in vectors else word.split("-"))]
    if any(part not in vectors for part in parts):
        return None
    mean: FloatArray = np.mean([vectors[part] for part in parts], axis=0)
    return mean


def read_vectors(file: Path, wanted: set[str]) -> dict[str, FloatArray]:
    """The vectors of the wanted words that the file has; its first line decides the width."""
    vectors: dict[str, FloatArray] = {}
    width = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                word, _, rest = line.rstrip().partition(" ")
                width = width or rest.count(" ") + 1
                if word in wanted and rest.count(" ") < width:  # else a phrase, as some tables have
                    vectors[word] = _numbers(file, number, rest, width)
    except FileNotFoundError:
        raise DatasetError(
            f"The vectors file {file} does not exist.", hint="'refiner download glove' fetches one."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The vectors file {file} cannot be read ({error}).") from None
    return vectors


def _numbers(file: Path, line: int, text: str, width: int) -> FloatArray:
    try:
        vector = np.array(text.split(" "), dtype=np.float64)
    except ValueError as error:
        raise DatasetError(f"{file}, line {line}: {error}.") from None
    if len(vector) != width or not np.isfinite(vector).all() or not vector.any():
        raise DatasetError(f"{file}, line {line}: {width} finite numbers, not all 0, are needed.")
    return vector


def _cosines(names: Sequence[str], vectors: dict[str, FloatArray]) -> FloatArray:
    rows = np.stack([vector for name in names if (vector := vector_of(name, vectors)) is not None])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    table: FloatArray = rows @ rows.T
    return table
