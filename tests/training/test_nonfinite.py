"""Non-finite values: named with step and cause, skipped, and too many of them stop the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from refiner_cli.core.models.base import Scores
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.errors import RefinerError
from refiner_cli.training import nonfinite as watch
from refiner_cli.training.events import StepDone
from tests.training.test_survival import training_on

NAN = float("nan")
FILES = (Path("a.jpg"), Path("b.jpg"))


def scores() -> Scores:
    return Scores(torch.zeros(2, 3), torch.zeros(2, 2), None)


def parameters(gradient: float = 0.0, value: float = 0.0) -> dict[str, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(torch.tensor([value]))
    parameter.grad = torch.tensor([gradient])
    return {"gate": parameter}


def test_the_cause_is_the_first_in_the_order_of_computation() -> None:
    images = torch.zeros(2, 3, 4, 4)
    assert "gradient of 'gate'" in watch.diagnose_nonfinite(
        1.0, images, FILES, scores(), parameters(gradient=NAN)
    )
    assert "loss is nan" in watch.diagnose_nonfinite(NAN, images, FILES, scores(), parameters(gradient=NAN))
    broken = scores()
    assert broken.state is not None
    broken.state[1, 0] = float("inf")
    assert "the state scores of b.jpg" in watch.diagnose_nonfinite(NAN, images, FILES, broken, parameters())
    images[0, 0, 0, 0] = NAN
    assert "the pixels of a.jpg" in watch.diagnose_nonfinite(NAN, images, FILES, broken, parameters())
    assert "parameter 'gate'" in watch.diagnose_nonfinite(NAN, images, FILES, broken, parameters(value=NAN))


def test_a_step_with_a_nan_is_skipped_and_named(small_demo: Path, tmp_path: Path) -> None:
    training = training_on(small_demo, tmp_path / "run", **{"train.max_steps": 2})
    going = training.fit()
    next(going)
    before = {name: p.detach().clone() for name, p in training.optimizer_step.parameters.items()}
    batch = next(training.rest_of_epoch())
    pixels = batch.images.clone()
    pixels[3] = NAN
    done, _ = training.train_step(ImageBatch(pixels, batch.rows), lambda: False)
    assert done.skipped == f"the pixels of {training.files[int(batch.rows[3])]} are not finite"
    assert all(torch.equal(before[name], p) for name, p in training.optimizer_step.parameters.items())
    after = next(event for event in going if isinstance(event, StepDone))
    assert (after.step, after.skipped) == (2, None)
    lines = [row for row in training.run.metrics() if row["kind"] == "step"]
    assert (lines[0]["loss"], lines[0]["skipped"]) == (None, done.skipped)


def test_too_many_in_a_row_stop_the_run(small_demo: Path, tmp_path: Path) -> None:
    training = training_on(small_demo, tmp_path / "run", **{"train.max_nonfinite_steps": 1})
    with torch.no_grad():
        next(iter(training.optimizer_step.parameters.values())).fill_(NAN)
    training.progress.validated = True  # validation has its own view of such a model
    with pytest.raises(
        RefinerError, match="2 consecutive steps were non-finite; last: step 2, the learned parameter"
    ):
        list(training.fit())


@pytest.mark.parametrize("value", [1e30, NAN])
def test_a_diverged_run_names_the_parameter_and_not_the_scores(
    small_demo: Path, tmp_path: Path, value: float
) -> None:
    training = training_on(small_demo, tmp_path / "run")
    with torch.no_grad():
        for parameter in training.optimizer_step.parameters.values():
            parameter.fill_(value)
    with pytest.raises(
        RefinerError, match=r"Validation after step 0 failed: .*the learned parameter"
    ) as raised:
        list(training.fit())
    assert "Lower train.lr" in str(raised.value)
