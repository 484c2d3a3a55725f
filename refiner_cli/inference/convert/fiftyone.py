"""FiftyOne: a folder that ``fiftyone.types.FiftyOneDataset`` imports, ``metadata.json`` and ``samples.json``.

Every field is a label of its own, so that the App filters by state and by object. Without a ``version`` in
its metadata FiftyOne reads the samples one by one and creates its own document of the dataset.
https://docs.voxel51.com/user_guide/import_datasets.html
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from refiner_cli.inference.convert.answers import Answers, share
from refiner_cli.inference.convert.writer import AnswerWriter, Converted, ConvertOptions, write_json_array


class FiftyOneWriter(AnswerWriter):
    """Fields ``state``, ``object``, ``pair``, empty where that is not said, and lists of all guesses."""

    def write(self, target: Path, answers: Answers, options: ConvertOptions) -> Converted:
        del options
        with (target / "samples.json").open("w", encoding="utf-8", newline="\n") as stream:
            stream.write('{"samples": ')
            images = write_json_array(stream, samples(answers))
            stream.write("}\n")
        metadata = {"media_type": "image", "info": {"source": f"refiner, {answers.file.name}"}}
        (target / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
        step = "fiftyone.Dataset.from_dir({out!r}, dataset_type=fiftyone.types.FiftyOneDataset)"
        return Converted(images, ("next, in Python: " + step,))


def samples(answers: Answers) -> Iterator[dict[str, Any]]:
    """The samples, as ``fiftyone.Sample.from_dict`` reads them."""
    for path, answer in answers.with_text_paths():
        row, said = answer.row, answer.said
        is_pair = said.state is not None and said.object is not None
        yield {
            "filepath": path,
            "tags": ["seen pair" if row.predictions[0].seen else "unseen pair"] if is_pair else [],
            "verdict": row.verdict,
            "state": classification(said.state, share(row.states, said.state)),
            "object": classification(said.object, share(row.objects, said.object)),
            "pair": classification(said.text if is_pair else None, said.probability),
            "states": classifications((one.name, one.probability) for one in row.states),
            "objects": classifications((one.name, one.probability) for one in row.objects),
            "pairs": classifications(
                (f"{one.state} {one.object}", one.probability) for one in row.predictions
            ),
        }


def classification(label: str | None, confidence: float | None) -> dict[str, Any] | None:
    """A label as FiftyOne stores it; None for none."""
    if label is None:
        return None
    return {"_cls": "Classification", "tags": [], "label": label, "confidence": confidence}


def classifications(labels: Iterable[tuple[str, float]]) -> dict[str, Any]:
    return {"_cls": "Classifications", "classifications": [classification(*label) for label in labels]}
