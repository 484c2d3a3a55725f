"""From a method's name to a model."""

from __future__ import annotations

from refiner_cli.config import MethodConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError
from refiner_cli.plugins import method_class


def build_model(method: str, backbone: Backbone, config: MethodConfig, space: LabelSpace) -> Model:
    """A model at its initial values for the states and objects of ``space``.

    Raises:
        ConfigError: the method is unknown, or ``config`` is another method's section.
    """
    section = method_section(method)
    if not isinstance(config, section):
        raise ConfigError(f"The method {method} takes {section.__name__}, not {type(config).__name__}.")
    model: Model = method_class(method).build(backbone, config, space)
    return model
