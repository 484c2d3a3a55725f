"""From a configuration to a model: the one place that knows the methods by name."""

from __future__ import annotations

from refiner_cli.config import Method, ModelConfig
from refiner_cli.core.baselines import Clip
from refiner_cli.core.clip import Backbone
from refiner_cli.core.model import Model
from refiner_cli.core.refiner import Refiner
from refiner_cli.data.labels import LabelSpace


def build_model(method: Method, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> Model:
    """A model at its initial values for the states and objects of ``space``."""
    if method == "clip":
        return Clip(backbone, config, space)
    return Refiner.build(backbone, config, space)
