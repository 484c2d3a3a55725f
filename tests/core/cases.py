"""A small label space for models that are built from nothing."""

from __future__ import annotations

from refiner_cli.data.labels import LabelSpace

PAIRS = [("wet", "dog"), ("wet", "car"), ("red", "car"), ("old", "key")]
SPACE = LabelSpace.from_pairs(PAIRS, PAIRS[:3])
