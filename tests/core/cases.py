"""A small label space for models that are built from nothing."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model
from refiner_cli.data.labels import LabelSpace

PAIRS = [("wet", "dog"), ("wet", "car"), ("red", "car"), ("old", "key")]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS[:3])


def steps(model: Model, pixels: torch.Tensor, count: int = 3) -> list[float]:
    """Losses of a few steps on one batch."""
    space = SPACE.training()
    truth = torch.tensor([0, 1])
    optimizer = torch.optim.SGD(model.trainable_parameters().values(), lr=0.005)
    losses = []
    for _ in range(count):
        torch.manual_seed(0)
        model.train()
        scores = model.score(model.encode_images(pixels), model.encode_pairs(space))
        loss = model.loss(scores, truth, space, TrainConfig())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
