"""``python -m refiner_cli.experiments --out DIR``: train and measure every variant, print the tables.

``--folds`` measures on held-out training pairs instead, which is where settings are chosen: the test split
chooses nothing. ``--holdouts`` measures on other unseen pairs than the demo's, each hold-out with a tiny
backbone that was pre-trained without them, so that a result does not depend on one list of pairs.

Trials run in parallel, one CPU thread each, so that the figures do not depend on the number of cores. An
interrupted study resumes; trials that have a result are not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.errors import RefinerError
from refiner_cli.experiments import few_shot, regions, warm_starts
from refiner_cli.experiments.plan import by_fold, by_holdout, by_seed, processes
from refiner_cli.experiments.tables import tables
from refiner_cli.experiments.trial import Found, Trial, run_trials
from refiner_cli.experiments.variants import ABLATIONS, METHODS
from refiner_cli.files import atomic_file

VARIANTS = (*METHODS, *ABLATIONS)


def by_training(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials grouped by the training that they share."""
    groups: dict[Path, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.trained().folder, []).append(trial)
    return list(groups.values())


def study(out: Path, trials: Sequence[Trial], workers: int) -> str:
    """Run all trials and return the tables."""
    results: dict[str, dict[int, Found]] = {trial.variant.name: {} for trial in trials}
    with processes(workers) as pool:
        waiting = {pool.submit(run_trials, group): group for group in by_training(trials)}
        done = 0
        for future in as_completed(waiting):
            for trial, found in zip(waiting[future], future.result(), strict=True):
                done += 1
                results[trial.variant.name][trial.seed] = found
                worlds = ", ".join(f"{world} AUC {found[world]['AUC']:.1f}" for world in ("closed", "open"))
                print(
                    f"{done}/{len(trials)} {trial.variant.name} seed {trial.seed}: {worlds}", file=sys.stderr
                )
    text = tables({name: [found[seed] for seed in sorted(found)] for name, found in results.items()})
    with atomic_file(out / "study.md") as part:
        part.write_text(text, "utf-8")
    return text


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder; an existing study resumes")
    parser.add_argument("--seeds", type=int, default=5, help="trainings per variant")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--folds", type=int, default=0, help="measure on N folds of the training split")
    instead.add_argument("--holdouts", type=int, default=0, help="measure on N other lists of unseen pairs")
    parser.add_argument(
        "--variants", nargs="+", choices=[variant.name for variant in VARIANTS], help="measure these only"
    )
    parser.add_argument("--dataset", type=Path, help="study a dataset folder instead of the demo benchmark")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trials in parallel")
    return parser


def main() -> None:
    parser = argument_parser()
    options = parser.parse_args()
    if options.holdouts and options.dataset is not None:
        parser.error("--holdouts are lists of the demo benchmark; use --folds or --seeds with --dataset")
    variants = [
        variant for variant in VARIANTS if options.variants is None or variant.name in options.variants
    ]
    try:
        if options.dataset is not None:
            load_benchmark(options.dataset)  # report a fault before anything is trained
        if options.folds:
            out = options.out / "folds"
            trials = by_fold(out, variants, options.folds, options.dataset)
        elif options.holdouts:
            out = options.out / "holdouts"
            trials = by_holdout(out, variants, options.holdouts, options.workers)
        else:
            out = options.out
            trials = by_seed(out, variants, options.seeds, options.dataset)
        print(study(out, trials, options.workers))
    except RefinerError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["regions"]:
        regions.main(sys.argv[2:])
    elif sys.argv[1:2] == ["few-shot"]:
        few_shot.main(sys.argv[2:])
    elif sys.argv[1:2] == ["warm-start"]:
        warm_starts.main(sys.argv[2:])
    else:
        main()
