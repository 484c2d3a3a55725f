"""run.json and best.json of a run directory, as they are read and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refiner_cli.errors import ModelFileError

RUN_FORMAT = "refiner.run/3"
OLD_RUN_FORMAT = "refiner.run/1"
RUN = "run.json"
BEST = "best.json"


class DamagedRunError(ModelFileError):
    """run.json is missing or damaged."""


def read_run_file(folder: Path) -> dict[str, Any]:
    """The content of run.json. Raises ModelFileError if it is missing, damaged or of another version."""
    file = folder / RUN
    try:
        content = json.loads(file.read_bytes())
        found = content["format"]
    except FileNotFoundError:
        raise DamagedRunError(f"{folder} is not a run: the file {RUN} is missing.") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedRunError(f"The run file {file} is damaged ({type(error).__name__}).") from None
    if found == OLD_RUN_FORMAT:
        raise ModelFileError(
            f"{folder} is a run of refiner 0.1.0, which this version cannot read or resume.",
            hint="Train again, or export its model with refiner 0.1.0: exported models can be read.",
        )
    if found != RUN_FORMAT:
        raise ModelFileError(f"{file} has the format {found!r}; this version reads {RUN_FORMAT!r}.")
    return dict(content)


def read_best(folder: Path) -> dict[str, Any] | None:
    """best.json of a run directory, or None if there is none. Raises ModelFileError if it is damaged."""
    file = folder / BEST
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found["checkpoint"], str) or Path(found["checkpoint"]).name != found["checkpoint"]:
            raise TypeError("checkpoint")
        if not (isinstance(found["step"], int) and isinstance(found["val"], dict)):
            raise TypeError("step, val")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(
            f"The file {file} is damaged ({type(error).__name__}).", hint="--resume writes it again."
        ) from None
    return dict(found)
