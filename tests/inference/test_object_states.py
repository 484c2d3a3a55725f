"""Several states of one object, each with a probability of its own."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from refiner_cli.core.model_io.zero_shot import zero_shot_model
from refiner_cli.core.models.base import ImageVectors
from refiner_cli.data.labels import LabelSpace
from refiner_cli.inference.object_states import MultiStateRecogniser, state_probabilities
from refiner_cli.inference.recogniser import Recogniser
from tests.conftest import Cli, parse_rows

STATES = ("broken", "burnt", "clean", "cut", "dirty", "frozen", "wet")
OBJECTS = ("apple", "car")


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8])
def test_a_state_is_compared_with_the_median_of_the_others(count: int) -> None:
    scores = (
        torch.randn(5, count, generator=torch.Generator().manual_seed(count)).sort(descending=True).values
    )
    found = state_probabilities(scores)
    for row, made in zip(scores.tolist(), found.tolist(), strict=True):
        for i, score in enumerate(row):
            typical = statistics.median_low([other for j, other in enumerate(row) if j != i])
            odds = score - typical - math.log(count - 1)
            assert made[i] == pytest.approx(1 / (1 + math.exp(-odds)))
    if count == 2:
        torch.testing.assert_close(found, scores.double().softmax(1))


def test_two_states_of_one_object_are_both_probable() -> None:
    space = LabelSpace.from_pairs([(s, o) for s in STATES for o in OBJECTS], [])
    model, _ = zero_shot_model("tiny", space)
    recogniser = MultiStateRecogniser(model, space, torch.float32, 1)
    bank = Recogniser(model, space).bank
    scale = model.backbone.logit_scale
    texts = {pair: bank.pairs[i] for i, pair in enumerate(space.pairs)}
    both = F.normalize(texts["dirty", "car"] + texts["broken", "car"], dim=-1)
    image = torch.stack([both, texts["wet", "apple"]])
    made = recogniser.predict_vectors(ImageVectors(image, image, image), top_k=3)
    listed = made[0].object_states[0]
    assert (len(listed.states), listed.object) == (len(STATES), made[0].objects[0].name)
    probabilities = {one.name: one.probability for one in listed.states}
    z = {state: float(scale * both @ texts[state, "car"]) for state in STATES}
    for state in STATES:
        typical = statistics.median_low([z[other] for other in STATES if other != state])
        expected = 1 / (1 + math.exp(typical - z[state] + math.log(len(STATES) - 1)))
        assert probabilities[state] == pytest.approx(expected, abs=1e-4)
    assert {one.name for one in listed.states[:2]} == {"dirty", "broken"}
    assert [len(one.compositions) for one in made] == [3, 3]
    plain = Recogniser(model, space).predict_vectors(ImageVectors(image, image, image), top_k=3)
    assert [one.compositions for one in plain] == [one.compositions for one in made]


def test_rows_list_the_states_and_are_not_mixed_with_rows_that_do_not(
    cli: Cli, small_export: Path, small_demo: Path, tmp_path: Path
) -> None:
    photos, out = (
        next(path for path in (small_demo / "images").iterdir() if path.is_dir()),
        tmp_path / "r.jsonl",
    )
    command = ("-q", "predict", small_export, photos, "-o")
    assert cli(*command, out, "--object-states", "2").code == 0
    rows = parse_rows(out.read_text("utf-8"))
    assert all(len(row["object_states"]) == 2 for row in rows)
    for row in rows:
        values = [one["probability"] for one in row["object_states"][0]["states"]]
        assert values == sorted(values, reverse=True)
    done = cli(*command, out)
    assert (done.code, "another object states" in done.err) == (2, True)
    assert cli(*command, tmp_path / "r.csv", "--object-states", "2").code == 2
