"""``torch.compile`` for the image side of a training step, where it can pay."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from refiner_cli.core.models.base import Model


def compile_images(model: Model) -> str:
    """Compile the model's ``encode_images`` in place; returns what was done, or why nothing was.

    Text is left alone: the prefix cache encodes few tokens of many prompts, whose number differs from
    call to call.
    """
    why_not = reason_against_compiling(model.device)
    if why_not:
        return f"not compiled: {why_not}"
    model.encode_images = torch.compile(model.encode_images, dynamic=True)  # type: ignore[method-assign]
    return "image encoding is compiled; the first steps take minutes"


def reason_against_compiling(device: torch.device) -> str:
    """Why compiling cannot pay; empty if it may."""
    if device.type != "cuda":
        return f"on the device {device.type} it takes longer than it saves"
    return "" if find_spec("triton") else "the package triton is missing"
