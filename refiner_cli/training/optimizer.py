"""The optimizer: AdamW as here, or Adam as published methods use it."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model

BETAS = (0.9, 0.98)  # as CLIP was trained: the usual 0.999 remembers longer than a short training lasts
PUBLISHED_BETAS = (0.9, 0.999)  # torch's defaults, which published CZSL methods keep


def build_optimizer(model: Model, config: TrainConfig) -> torch.optim.Optimizer | None:
    """For everything the model learns; None if it learns nothing.

    AdamW does not decay vectors (biases, norms). Adam adds the decay of every parameter to its gradient.
    """
    parameters = list(model.trainable_parameters().values())
    if not parameters:
        return None
    if config.optimizer == "adam":
        return torch.optim.Adam(
            parameters, lr=config.lr, betas=PUBLISHED_BETAS, weight_decay=config.weight_decay
        )
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(config.weight_decay if parameter.ndim >= 2 else 0.0, []).append(parameter)
    made = [{"params": held, "weight_decay": decay} for decay, held in groups.items()]
    return torch.optim.AdamW(made, betas=BETAS)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
