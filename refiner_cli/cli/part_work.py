"""How ``predict`` and ``index`` have units of work computed: by this process, by one a device, or by Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from refiner_cli.cli.console import terminal
from refiner_cli.errors import RefinerError, UsageError

if TYPE_CHECKING:
    from refiner_cli.cli.predict_request import PartsRequest
    from refiner_cli.inference.output import RowCount
    from refiner_cli.inference.parts.plan import PartPlan
    from refiner_cli.inference.parts.share import Share


class UnitWriter(Protocol):
    """Makes the parts of a plan."""

    @property
    def plan(self) -> PartPlan: ...

    def __call__(self, unit: int) -> RowCount: ...


def compute_units(
    parts: PartsRequest, share: Share, folder: Path, make: Callable[[str | None], UnitWriter]
) -> PartPlan:
    """Make sure that the parts of a share are there.

    Args:
        folder: of the plan.
        make: loads the model on a device (None: as the command line says) and reads or makes the plan; it
            is called in every process, so it must be importable by name.
    """
    from refiner_cli.inference.parts.plan import read_plan
    from refiner_cli.inference.parts.processes import run_processes
    from refiner_cli.inference.parts.ray_engine import import_ray, run_ray
    from refiner_cli.inference.parts.work import run_units

    if parts.devices:
        codes = run_processes(list_devices(parts.devices), partial(work_on_device, make, share))
        if not any(code == 0 for code in codes):
            raise RefinerError("Every process ended with an error.", hint="Their own messages say why.")
        return read_plan(folder)
    if parts.engine == "ray":
        import_ray()
    writer = make(own_device())
    plan = writer.plan
    with terminal.progress("units") as progress:
        finished = sum(map(plan.is_done, share.units(plan.units)))

        def count() -> None:
            nonlocal finished
            finished += 1
            progress(finished, len(range(share.index, plan.units, share.count)))

        if parts.engine == "ray":
            run_ray(plan, share, partial(make_quietly, make), count, lease_seconds())
        else:
            run_units(plan, share, writer, lease_seconds(), count)
    return plan


def work_on_device(make: Callable[[str | None], UnitWriter], share: Share, device: str) -> int:
    """What the process of one device does; returns its exit code."""
    from refiner_cli.inference.parts.work import run_units

    try:
        writer = make_quietly(make, device)
        run_units(writer.plan, share, writer, lease_seconds())
    except RefinerError as error:
        terminal.error(error)
        return error.exit_code
    return 0


def make_quietly(make: Callable[[str | None], UnitWriter], device: str | None = None) -> UnitWriter:
    """In a process that is not the user's."""
    terminal.quiet = True
    return make(device)


def own_device() -> str | None:
    """Each process that torchrun started on a machine takes a GPU of its own."""
    import torch

    rank = os.environ.get("LOCAL_RANK", "").strip()
    if rank.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(rank) % torch.cuda.device_count()}"
    return None


def share_of(parts: PartsRequest) -> Share:
    """The units of this process, as asked or as its launcher says."""
    from refiner_cli.inference.parts.share import launched_share, parse_share

    share = parse_share(parts.part) if parts.part else launched_share(os.environ)
    if share.count > 1:
        terminal.note(f"part {share.index + 1} of {share.count} ({share.reason})")
    return share


def list_devices(text: str) -> list[str]:
    """The devices of ``--devices``: all GPUs of this machine, or those of a list. Raises UsageError."""
    import torch

    if text != "all":
        devices = [device.strip() for device in text.split(",") if device.strip()]
        devices = [f"cuda:{device}" if device.isdecimal() else device for device in devices]
        if not devices:
            raise UsageError("--devices names no device.", hint="Use all, or a list such as cuda:0,cuda:1.")
        return devices
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["auto"]


def lease_seconds() -> float:
    """How long a process may give no sign of life: ``REFINER_LEASE_SECONDS``, 60 by default."""
    from refiner_cli.inference.parts.lease import LEASE_SECONDS

    text = os.environ.get("REFINER_LEASE_SECONDS", "").strip()
    try:
        seconds = float(text or LEASE_SECONDS)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86400:
        raise UsageError(f"REFINER_LEASE_SECONDS is {text!r}, which is not a number from 1 to 86400.")
    return seconds
