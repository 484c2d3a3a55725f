"""Diagnose non-finite values: where a NaN or an infinity in a training comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from refiner_cli.core.models.base import Scores
from refiner_cli.errors import RefinerError, ScoresError

HINT = "Lower train.lr or use --precision fp32."
LARGE = 1e4  # a parameter beyond this diverged: trained ones stay below 100


def has_nonfinite(value: Tensor) -> bool:
    """Whether a tensor holds a NaN or an infinity."""
    return not bool(value.isfinite().all())


def diagnose_nonfinite(
    loss: float,
    images: Tensor,
    files: Sequence[Path],
    scores: Scores,
    parameters: Mapping[str, nn.Parameter],
) -> str:
    """The first thing in the order of computation that is not finite, in words.

    Args:
        loss: of this step, over all processes.
        images: ``B x 3 x H x W``, the batch of this process.
        files: ``B`` paths of these images.
        scores: the model's scores of them.
        parameters: the learned parameters, with their gradients.
    """
    if any(has_nonfinite(parameter.detach()) for parameter in parameters.values()):
        return str(diagnose_parameters(parameters))
    for file, image in zip(files, images, strict=True):
        if has_nonfinite(image):
            return f"the pixels of {file} are not finite"
    for branch in ("composition", "state", "object"):
        logits = getattr(scores, branch)
        if logits is None or not has_nonfinite(logits):
            continue
        rows = [file for file, row in zip(files, logits, strict=True) if has_nonfinite(row)]
        of = "every image" if len(rows) == len(files) > 1 else str(rows[0])
        return f"the {branch} scores of {of} are not finite{cause(parameters)}"
    if not math.isfinite(loss):
        return f"the loss is {loss}{cause(parameters)}"
    broken = [name for name, p in parameters.items() if p.grad is not None and has_nonfinite(p.grad)]
    if broken:
        return f"the gradient of {join_names(broken)} is not finite{cause(parameters)}"
    return f"the gradients are too large to add up{cause(parameters)}"


def diagnose_parameters(parameters: Mapping[str, nn.Parameter]) -> str | None:
    """What is wrong with the learned parameters, in words; None if they are finite and of sensible size."""
    broken = [name for name, parameter in parameters.items() if has_nonfinite(parameter.detach())]
    if broken:
        return f"the learned parameter {join_names(broken)} is not finite"
    sizes = {name: float(p.detach().abs().max()) for name, p in parameters.items() if p.numel()}
    largest = max(sizes, key=lambda name: sizes[name], default="")
    if largest and sizes[largest] > LARGE:
        return f"training diverged, the learned parameter {largest!r} has grown to {sizes[largest]:.1e}"
    return None


def cause(parameters: Mapping[str, nn.Parameter]) -> str:
    """The end of a sentence: what is wrong with the parameters, if anything is."""
    found = diagnose_parameters(parameters)
    return f" ({found})" if found else ""


def check_nonfinite_steps(count: int, limit: int, step: int, problem: str) -> None:
    """Raise RefinerError if more than ``limit`` consecutive steps were non-finite; ``step`` is the last."""
    if count > limit:
        raise RefinerError(
            f"{count} consecutive steps were non-finite; last: step {step}, {problem}.", hint=HINT
        )


def validation_error(step: int, error: ScoresError, parameters: Mapping[str, nn.Parameter]) -> RefinerError:
    """The error of a validation whose scores are not finite: the cause in the parameters, if there is one."""
    found = diagnose_parameters(parameters) or error.message.rstrip(".")
    return RefinerError(f"Validation after step {step} failed: {found}.", hint=HINT)


def join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"
