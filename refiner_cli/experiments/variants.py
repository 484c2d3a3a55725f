"""The arms of the study: what is trained, each as its difference from the demo recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refiner_cli.demo.scenes import CLUTTER

AMOUNTS = (0, CLUTTER, 2 * CLUTTER, 3 * CLUTTER)  # pieces of other objects on a picture, on average


@dataclass(frozen=True)
class Variant:
    """One thing to train, once a seed."""

    name: str  # of its folder
    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys
    of: Variant | None = None  # whose training this is, where the settings count outside training alone
    priors: bool = False  # whether the open world is also measured with each feasibility prior
    clutter: bool = False  # whether it is also measured on test pictures with each amount of clutter


REFINER = Variant("refiner", "Refiner", priors=True, clutter=True)
NO_QUERIES = Variant("no-queries", "without queries", {"model.num_queries": 0}, clutter=True)

# Each method learns at the rate that suits it best. With batches of 32 CoOp and CSP were tried at 5e-4, 2e-3
# and 5e-3, Troika and Refiner at those and at 1e-2, on the validation part of another seed; with batches
# of 16 the latter two at 3.5e-3, on held-out training pairs (NOTES.md). Troika's step costs a fifth
# more than Refiner's, so it passes over the pictures six times in the time of seven.
TROIKA = Variant("troika", "Troika", {"method": "troika", "train.epochs": 6})
METHODS = (
    Variant("clip", "CLIP zero-shot", {"method": "clip"}),
    Variant("coop", "CoOp", {"method": "coop", "train.lr": 2e-3}),
    Variant("csp", "CSP", {"method": "csp", "train.lr": 2e-3}),
    Variant("troika-one", "Troika on one grid, as published", {"model.tta_shifts": 1}, of=TROIKA),
    TROIKA,
    REFINER,
)
PARTS = (
    NO_QUERIES,
    Variant("no-fusion", "without fusion", {"model.image_to_text": False}),
    Variant("no-state", "without state alignment", {"model.align_state": False}),
    Variant("no-object", "without object alignment", {"model.align_object": False}),
    Variant("no-adapters", "without adapters", {"model.adapters": False}),
    Variant("no-hubs", "without levelled hubs", {"model.hubness_correction": False}, of=REFINER),
    Variant("own-words", "words as trained", {"model.wise_ft_alpha": 1}, of=REFINER),
    Variant("one-grid", "on one patch grid", {"model.tta_shifts": 1}, of=REFINER),
)
