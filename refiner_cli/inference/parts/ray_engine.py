"""The units of a folder of parts, handed to Ray: an actor a GPU, or a share of the cores where there is none.

Restarts, retries and scaling are Ray's. The actors hold leases like any other process, so that processes
outside of Ray may work on the same folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refiner_cli.errors import EnvironmentLacksError, RefinerError
from refiner_cli.inference.parts.lease import LEASE_SECONDS, Leases
from refiner_cli.inference.parts.plan import LEASES, PartPlan
from refiner_cli.inference.parts.share import Share
from refiner_cli.inference.parts.work import Compute, run_unit

CORES_PER_ACTOR = 4  # where there is no GPU


class UnitActor:
    """Computes units, one after the other, with a model that is loaded once."""

    def __init__(self, plan: PartPlan, make: Callable[[], Compute], seconds: float, folder: str) -> None:
        with contextlib.suppress(OSError):  # paths are relative to where the command was started
            os.chdir(folder)
        self.plan, self.compute = plan, make()
        self.leases = Leases(plan.folder / LEASES, seconds)

    def run(self, unit: int) -> int:
        while not self.plan.is_done(unit) and not run_unit(self.plan, self.leases, unit, self.compute):
            self.leases.ended.wait(min(1.0, self.leases.seconds / 10))
        return unit


def import_ray() -> Any:
    """Raises EnvironmentLacksError where Ray is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise EnvironmentLacksError(
            "--engine ray needs the package ray.", hint="Run: pip install 'refiner-czsl[ray]'"
        ) from None
    return ray


def run_ray(
    plan: PartPlan,
    share: Share,
    make: Callable[[], Compute],
    done: Callable[[], None] = lambda: None,
    seconds: float = LEASE_SECONDS,
) -> None:
    """Compute every unit of a share that is not done, on the cluster of ``RAY_ADDRESS`` or on this machine.

    Args:
        make: loads the model in an actor; it must be importable by name there.
        done: called after every unit.

    Raises:
        RefinerError: a unit cannot be computed.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, configure_logging=False)
    try:
        resources = ray.cluster_resources()
        gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        each = {"num_gpus": 1} if gpus else {"num_cpus": min(CORES_PER_ACTOR, max(1, cores // 2))}
        actors = gpus or max(1, cores // each["num_cpus"])
        actor_class = ray.remote(max_restarts=-1, max_task_retries=-1, **each)(UnitActor)
        units = (unit for unit in share.units(plan.units) if not plan.is_done(unit))
        hand_out(
            ray,
            [actor_class.remote(plan, make, seconds, str(Path.cwd())) for _ in range(actors)],
            units,
            done,
        )
    finally:
        if own:
            ray.shutdown()


def hand_out(ray: Any, actors: list[Any], units: Any, done: Callable[[], None]) -> None:
    """Keep every actor busy with one unit until there is none left."""
    busy: dict[Any, Any] = {}
    idle = list(actors)
    for unit in units:
        if not idle:
            idle.append(finish_one(ray, busy, done))
        actor = idle.pop()
        busy[actor.run.remote(unit)] = actor
    while busy:
        finish_one(ray, busy, done)


def finish_one(ray: Any, busy: dict[Any, Any], done: Callable[[], None]) -> Any:
    """Wait until one unit is done, and return the actor that is free then."""
    (task,), _ = ray.wait(list(busy), num_returns=1)
    try:
        ray.get(task)
        done()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (
            cause if isinstance(cause, RefinerError) else RefinerError(f"A unit failed in Ray: {cause}.")
        ) from None
    except ray.exceptions.RayError as error:
        raise RefinerError(f"Ray lost an actor for good: {str(error).splitlines()[0]}") from None
    return busy.pop(task)
