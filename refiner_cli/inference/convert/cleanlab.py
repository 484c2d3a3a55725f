"""cleanlab: the labels that people gave and the model's probabilities, to find wrong labels.

State and object are two problems, each with ``labels`` (``N`` int64) and ``pred_probs`` (``N x K`` float32)
as ``cleanlab.filter.find_label_issues`` takes them. Verdicts play no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refiner_cli.data.labels import NameIndex
from refiner_cli.errors import DatasetError
from refiner_cli.inference.convert.answers import Answers, NameGuess
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions, all_names

Ranked = Iterable[NameGuess]


class CleanlabWriter(AnswerWriter):
    """An npz file without pickled objects."""

    suffix = ".npz"
    needs_labels = True
    honours_verdicts = False

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        states, objects = all_names(answers, options)
        problems = {"state": Problem(states), "object": Problem(objects)}
        paths: list[str] = []
        for answer in answers:
            label = options.labels.get(answer.file.resolve())
            if label is None:
                answers.left_out["without a label"] += 1
                continue
            if not answer.row.states or not answer.row.objects:
                raise DatasetError(
                    f"{answers.file} lists no probabilities of states and objects, which cleanlab needs.",
                    hint="Predict to JSON lines, to Parquet, or to CSV with --wide.",
                )
            paths.append(answer.row.path)
            for problem, name, ranked in zip(
                problems.values(), label, (answer.row.states, answer.row.objects), strict=True
            ):
                problem.add(name, ranked)
        arrays: dict[str, Any] = {f"{role}_{name}": array for role, problem in problems.items()
                  for name, array in problem.arrays().items()}  # fmt: skip
        with target.open("wb") as stream:
            np.savez_compressed(stream, paths=np.array(paths, dtype=np.str_), **arrays)
        step = (
            'cleanlab.filter.find_label_issues(data["state_labels"], data["state_pred_probs"]), object alike'
        )
        return Converted(len(paths), ("next, in Python: " + step,))


class Problem:
    """One classification problem: states, or objects.

    Args:
        names: the ``K`` classes, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.index = names, NameIndex(names)
        self.places = {name: i for i, name in enumerate(names)}
        self.labels: list[int] = []
        self.rows: list[npt.NDArray[np.float32]] = []

    def add(self, label: str, ranked: Ranked) -> None:
        """Take in an image: its label, and the names that its row lists with their probabilities."""
        self.labels.append(self.places[self.index.find(label) or label])
        given = {self.places[one.name]: one.probability for one in ranked}
        self.rows.append(fill_probabilities(given, len(self.names)))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "labels": np.array(self.labels, dtype=np.int64),
            "pred_probs": np.array(self.rows, dtype=np.float32).reshape(len(self.rows), len(self.names)),
            "names": np.array(self.names, dtype=np.str_),
        }


def fill_probabilities(given: dict[int, float], classes: int) -> npt.NDArray[np.float32]:
    """All ``K`` probabilities from the best ones: what these leave is spread evenly over the others."""
    rest = max(0.0, 1.0 - sum(given.values()))
    others = classes - len(given)
    row = np.full(classes, rest / others if others else 0.0)
    row[list(given)] = list(given.values())
    total = row.sum()
    filled: npt.NDArray[np.float32] = (row / total if total else row + 1 / classes).astype(np.float32)
    return filled
