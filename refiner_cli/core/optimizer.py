"""The optimizer: AdamW over groups of parameters, each with its weight decay and its learning rate."""

from __future__ import annotations

import torch

from refiner_cli.config import TrainConfig
from refiner_cli.core.model import Model


def optimizer_for(model: Model, config: TrainConfig) -> torch.optim.AdamW | None:
    """For everything the model learns; None if it learns nothing.

    Vectors (biases, norms, gates) are not decayed. A group carries its share of the learning rate.
    """
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.learned().items():
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((decay, model.rate_share(name, config)), []).append(parameter)
    made = [{"params": p, "weight_decay": decay, "share": share} for (decay, share), p in groups.items()]
    return torch.optim.AdamW(made) if made else None


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let every group learn at its share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
