"""The optimizer: AdamW over two groups of parameters, with and without weight decay."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.models.base import Model

BETAS = (0.9, 0.98)  # as CLIP was trained: the usual 0.999 remembers longer than a short training lasts


def build_optimizer(model: Model, config: TrainConfig) -> torch.optim.AdamW | None:
    """For everything the model learns; None if it learns nothing.

    Vectors (biases, norms) are not decayed.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in model.trainable_parameters().values():
        groups.setdefault(config.weight_decay if parameter.ndim >= 2 else 0.0, []).append(parameter)
    made = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
    return torch.optim.AdamW(made, betas=BETAS) if made else None


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
