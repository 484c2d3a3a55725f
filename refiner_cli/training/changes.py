"""What a resumed training may change, and what contradicts its run.

The device and the like may change without changing a result (``is_free``), a dataset may have moved, and a
finished run may get more epochs. Every change is kept in run.json under "changes", with the step after
which it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from refiner_cli.config import Config, flatten
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.errors import DatasetError, UsageError
from refiner_cli.settings import resolve
from refiner_cli.training.run_dir import Run
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.state import is_free

EPOCHS = "train.epochs"
Asked = Mapping[str, tuple[Any, str]]  # key -> value and where it was given, such as "--lr"


def change_run(run: Run, benchmark: Benchmark, asked: Asked) -> Run:
    """The run as it goes on; nothing is written.

    Args:
        benchmark: the data as they are now, perhaps at another place.
        asked: settings that were given with --resume.

    Raises:
        DatasetError: other data than those of the run.
        UsageError: a setting contradicts the run.
        ConfigError: a setting has a value that is not valid.
    """
    check_data(run, benchmark)
    present = dict(flatten(run.config.model_dump()))
    changed = {key: one for key, one in asked.items() if one[0] != present.get(key)}
    for key, (value, source) in changed.items():
        if key == EPOCHS:
            check_extension(run, benchmark, asked[key])
        elif not is_free(key):
            raise UsageError(
                f"{source} says {key} = {value!r}, and the run {run.folder} has {present.get(key)!r}.",
                hint="Leave it out, or start another run with another --out.",
            )
    given = [(source, {key: value}) for key, (value, source) in changed.items()]
    return changed_run(run, resolve([("run.json", present), *given]), str(benchmark.root.resolve()))


def changed_run(run: Run, config: Config, place: str) -> Run:
    """The run with another configuration and dataset folder, and what is another listed in "changes"."""
    before, after = (dict(flatten(one.model_dump())) for one in (run.config, config))
    made: dict[str, Any] = {key: [before[key], value] for key, value in after.items() if value != before[key]}
    if place != run.dataset.path:
        made["dataset"] = [run.dataset.path, place]
    if not made:
        return run
    return replace(
        run,
        config=config,
        dataset=replace(run.dataset, path=place),
        changes=(*run.changes, {"after_step": run.newest_step(), **made}),
    )


def check_data(run: Run, benchmark: Benchmark) -> None:
    """Raise DatasetError unless the benchmark holds the images, labels and splits of the run."""
    if benchmark.fingerprint() == run.dataset.fingerprint:
        return
    if str(benchmark.root.resolve()) == run.dataset.path:
        raise DatasetError(
            f"The dataset {benchmark.root} has changed since the run {run.folder} was started.",
            hint="Restore it, or start another run.",
        )
    raise DatasetError(
        f"{benchmark.root} is not the dataset of the run {run.folder}, which was trained on "
        f"{run.dataset.name} at {run.dataset.path}.",
        hint="Give the place of that dataset, or start another run.",
    )


def check_extension(run: Run, benchmark: Benchmark, asked: tuple[Any, str]) -> None:
    """Raise UsageError unless a finished run gets more epochs than it had."""
    epochs, source = asked
    now = run.config.train
    done = run.newest_step()
    old = Schedule(now, len(benchmark.without(run.skipped).samples["train"]), run.config.seed)
    if epochs < now.epochs:
        raise UsageError(
            f"{source} {epochs} is less than the {now.epochs} epochs of the run {run.folder}.",
            hint="A resumed run may only get more of them.",
        )
    if done < old.total:
        raise UsageError(
            f"The run {run.folder} is not finished (step {done} of {old.total}), so {source} {epochs} "
            "contradicts it.",
            hint="Resume it as it is; then it can be extended.",
        )
    if replace(old, config=now.model_copy(update={"epochs": epochs})).total == old.total:
        raise UsageError(
            f"The run {run.folder} ends after train.max_steps = {now.max_steps}, so {source} {epochs} adds "
            "nothing.",
            hint="Start another run.",
        )


def describe_change(change: Mapping[str, Any]) -> str:
    """One entry of "changes" as a sentence."""
    made = [f"{key} {pair[0]} -> {pair[1]}" for key, pair in change.items() if key != "after_step"]
    return f"changed after step {change['after_step']}: {', '.join(made)}"
