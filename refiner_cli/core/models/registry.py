"""From a configuration to a model: the one place that knows the methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from refiner_cli.config import Method, ModelConfig
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.baselines.clip import Clip
from refiner_cli.core.models.baselines.prompt_tuning import Coop, Csp
from refiner_cli.core.models.baselines.troika import Troika
from refiner_cli.core.models.refiner import Refiner
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError

Builder = Callable[[Backbone, ModelConfig, LabelSpace], Model]
METHODS: dict[Method, Builder] = {
    "refiner": Refiner.build,
    "clip": Clip,
    "coop": Coop,
    "csp": Csp,
    "troika": Troika,
}


def build_model(method: str, backbone: Backbone, config: ModelConfig, space: LabelSpace) -> Model:
    """A model at its initial values for the states and objects of ``space``."""
    for name, builder in METHODS.items():
        if name == method:
            return builder(backbone, config, space)
    raise ConfigError(f"The method {method!r} is unknown.", hint=f"Use {', '.join(get_args(Method))}.")
