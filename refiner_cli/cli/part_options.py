"""The options of an output of parts, which ``predict`` and ``index`` share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from refiner_cli.cli.predict_request import PartsRequest
from refiner_cli.errors import UsageError

PartShare = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="For an output folder of parts: compute every N-th unit.  [as Slurm's array or torchrun say]",
    ),
]
PartSize = Annotated[int, typer.Option(min=1, help="Images per part, unless a part is a shard.")]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="LIST", help="For an output folder of parts: start a process for each device; all, or a list."
    ),
]
Engine = Annotated[
    Literal["local", "ray"], typer.Option(help="For an output folder of parts: who computes the units.")
]


def choose_parts(
    out: str | None, part: str | None, size: int, devices: str | None, engine: Literal["local", "ray"]
) -> PartsRequest | None:
    """What is asked of an output of parts; None if the output is one file, or stdout.

    Raises UsageError for an option that needs parts.
    """
    if out and (out.endswith(("/", os.sep)) or Path(out).is_dir()):
        return request_parts(part, size, devices, engine)
    for option, given in (("--part", part), ("--devices", devices), ("--engine ray", engine == "ray")):
        if given:
            raise UsageError(
                f"{option} needs an output of parts.", hint="Use -o DIR/ with a slash at the end."
            )
    if launched_together():
        raise UsageError(
            "Several processes of torchrun need an output of parts.",
            hint="Use -o DIR/ with a slash at the end.",
        )
    return None


def choose_index_parts(
    out: Path, part: str | None, size: int, devices: str | None, engine: Literal["local", "ray"]
) -> PartsRequest | None:
    """What is asked of an index that several processes make; None if this one makes it alone."""
    array = os.environ.get("SLURM_ARRAY_TASK_ID", "").strip()
    begun = (out / "units").is_dir() and not (out / "index.json").exists()
    if part or devices or engine == "ray" or launched_together() or array or begun:
        return request_parts(part, size, devices, engine)
    return None


def request_parts(
    part: str | None, size: int, devices: str | None, engine: Literal["local", "ray"]
) -> PartsRequest:
    """Raises UsageError for options that exclude each other."""
    if devices and engine == "ray":
        raise UsageError("--devices and --engine ray exclude each other.", hint="Ray chooses the devices.")
    return PartsRequest(part, size, devices, engine)


def launched_together() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "").strip() not in {"", "1"}
