"""Which program and which weights made a run or a result: those of others are not taken for one's own."""

from __future__ import annotations

import json

from refiner_cli._version import __version__
from refiner_cli.config import Config
from refiner_cli.core.towers.local_weights import local_digest
from refiner_cli.training.run_dir import ENVIRONMENT, Run


def provenance(config: Config) -> dict[str, str]:
    """What a training depends on beside its settings and data. Raises what :func:`local_digest` raises."""
    return {"refiner": __version__, "backbone_files": local_digest(config.backbone, config.pretrained)}


def run_provenance(run: Run) -> dict[str, str | None]:
    """The same as it was when a run was started; None for what its environment.json does not say."""
    keys = ("refiner", "backbone_files")
    try:
        known = json.loads((run.folder / ENVIRONMENT).read_bytes())
        return {key: known.get(key) for key in keys}
    except (OSError, ValueError, AttributeError, RecursionError):
        return dict.fromkeys(keys)
