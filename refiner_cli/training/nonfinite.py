"""Numbers that are none: where a NaN or an infinity in a training step comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from refiner_cli.core.models.base import Scores


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
        scores: what the model said of them.
        parameters: the learned parameters, with their gradients.
    """
    broken = [name for name, parameter in parameters.items() if has_nonfinite(parameter.detach())]
    if broken:
        return f"the learned parameter {join_names(broken)} is not finite"
    for file, image in zip(files, images, strict=True):
        if has_nonfinite(image):
            return f"the pixels of {file} are not finite"
    for branch in ("composition", "state", "object"):
        logits = getattr(scores, branch)
        if logits is None or not has_nonfinite(logits):
            continue
        rows = [file for file, row in zip(files, logits, strict=True) if has_nonfinite(row)]
        of = "every image" if len(rows) == len(files) > 1 else str(rows[0])
        return f"the {branch} scores of {of} are not finite"
    if abs(loss) == float("inf") or loss != loss:  # noqa: PLR0124 - NaN alone differs from itself
        return f"the loss is {loss}"
    broken = [name for name, p in parameters.items() if p.grad is not None and has_nonfinite(p.grad)]
    if broken:
        return f"the gradient of {join_names(broken)} is not finite"
    return "the gradients are too large to add up"


def join_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]!r}{more}"
