"""The labelling tools' own packages open what is written for them, where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refiner_cli.inference.convert.answers import Answers
from refiner_cli.inference.convert.conversion import WRITERS, convert_answers
from refiner_cli.inference.convert.writer import ConvertOptions
from tests.inference.convert.conftest import PHOTOS

pytestmark = pytest.mark.filterwarnings("default")  # of the packages, not of ours


def test_label_studio_accepts_configuration_and_tasks(answers: Answers, tmp_path: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="pip install label-studio-sdk")
    convert_answers(answers, WRITERS["label-studio"], tmp_path / "out", ConvertOptions(states=["unripe"]))
    interface = sdk.LabelInterface((tmp_path / "out" / "labelling.xml").read_text("utf-8"))
    interface.validate()
    for task in json.loads((tmp_path / "out" / "tasks.json").read_text("utf-8")):
        assert task["data"]["image"]
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []


def test_fiftyone_imports_the_samples(answers: Answers, tmp_path: Path) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers", reason="pip install fiftyone")
    convert_answers(answers, WRITERS["fiftyone"], tmp_path / "out", ConvertOptions())
    # As fiftyone.Dataset.from_dir does, without the database that a Dataset needs.
    importer = importers.FiftyOneDatasetImporter(str(tmp_path / "out"))
    assert importer._is_legacy_format_data()
    with importer._to_legacy_importer() as samples:
        found = [(sample["state"].label, sample["object"].label) for sample in samples]
    assert found == list(PHOTOS.values())


def test_cleanlab_finds_the_wrong_label(answers: Answers, photos: Path, tmp_path: Path) -> None:
    filters = pytest.importorskip("cleanlab.filter", reason="pip install cleanlab")
    given = {photos / name: pair for name, pair in PHOTOS.items()} | {photos / "a.jpg": ("ripe", "pear")}
    convert_answers(answers, WRITERS["cleanlab"], tmp_path / "out.npz", ConvertOptions(labels=given))
    with np.load(tmp_path / "out.npz") as data:
        wrong = filters.find_label_issues(
            data["object_labels"], data["object_pred_probs"], filter_by="predicted_neq_given"
        )
    assert wrong.tolist() == [name == "a.jpg" for name in PHOTOS]
