"""``python -m refiner_cli.experiments --out DIR``: train and measure every variant, print the tables.

Measured is the demo's test split with several seeds; folds of held-out training pairs, which is where
settings are chosen, because the test split chooses nothing; and other hold-outs of unseen pairs, each with a
tiny backbone that was pre-trained without them, so that a result does not depend on one list of pairs.
``--seeds``, ``--folds`` and ``--holdouts`` ask for some of these.

Trials run in parallel, one CPU thread each, so that the figures do not depend on the number of cores. An
interrupted study resumes; trials that have a result are not repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path

from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.experiments import few_shot, regions, warm_starts
from refiner_cli.experiments.arguments import exit_with_sentence, positive
from refiner_cli.experiments.plan import by_fold, by_holdout, by_seed, processes
from refiner_cli.experiments.tables import FOLD, HOLDOUT, TEST, Results, study_text
from refiner_cli.experiments.trial import Found, Trial, run_trials
from refiner_cli.experiments.variants import ABLATIONS, METHODS
from refiner_cli.files import atomic_file

VARIANTS = (*METHODS, *ABLATIONS)
SEEDS, FOLDS, HOLDOUTS = 5, 4, 3  # of a study of which no part is named


def by_training(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials grouped by the training that they share."""
    groups: dict[Path, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.trained().folder, []).append(trial)
    return list(groups.values())


def measure_parts(parts: Mapping[str, Sequence[Trial]], workers: int) -> dict[str, Results]:
    """Run the trials of every part of the study; their metrics by part and variant, in the trials' order."""
    every = [trial for trials in parts.values() for trial in trials]
    found: dict[Path, Found] = {}
    with processes(workers) as pool:
        waiting = {pool.submit(run_trials, group): group for group in by_training(every)}
        for future in as_completed(waiting):
            for trial, result in zip(waiting[future], future.result(), strict=True):
                found[trial.folder] = result
                worlds = ", ".join(f"{world} AUC {result[world]['AUC']:.1f}" for world in ("closed", "open"))
                done = f"{len(found)}/{len(every)} {trial.variant.name} seed {trial.seed}"
                print(f"{done}: {worlds}", file=sys.stderr)
    results: dict[str, Results] = {}
    for part, trials in parts.items():
        results[part] = {trial.variant.name: [] for trial in trials}
        for trial in trials:
            results[part][trial.variant.name].append(found[trial.folder])
    return results


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m refiner_cli.experiments", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="output folder; an existing study resumes")
    parser.add_argument("--seeds", type=positive, default=0, help="measure on test with N seeds")
    parser.add_argument("--folds", type=positive, default=0, help="measure on N folds of the training split")
    parser.add_argument(
        "--holdouts", type=positive, default=0, help="measure on N other lists of unseen pairs"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=[variant.name for variant in VARIANTS], help="measure these only"
    )
    parser.add_argument("--dataset", type=Path, help="study a dataset folder instead of the demo benchmark")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="trials in parallel")
    return parser


def planned(options: argparse.Namespace) -> dict[str, list[Trial]]:
    """The trials of each part of the study that is asked for; of all parts unless one is named."""
    variants = [
        variant for variant in VARIANTS if options.variants is None or variant.name in options.variants
    ]
    seeds, folds, holdouts = options.seeds, options.folds, options.holdouts
    if not (seeds or folds or holdouts):
        seeds, folds, holdouts = SEEDS, FOLDS, HOLDOUTS if options.dataset is None else 0
    out, parts = options.out, dict[str, list[Trial]]()
    if seeds:
        parts[TEST] = by_seed(out, variants, seeds, options.dataset)
    if folds:
        parts[FOLD] = by_fold(out / "folds", variants, folds, options.dataset)
    if holdouts:
        parts[HOLDOUT] = by_holdout(out / "holdouts", variants, holdouts, options.workers)
    return parts


def main(arguments: Sequence[str]) -> None:
    parser = argument_parser()
    options = parser.parse_args(arguments)
    if options.holdouts and options.dataset is not None:
        parser.error("--holdouts are lists of the demo benchmark; use --folds or --seeds with --dataset")
    if options.dataset is not None:
        load_benchmark(options.dataset)  # report a fault before anything is trained
    text = study_text(measure_parts(planned(options), options.workers))
    with atomic_file(options.out / "study.md") as part:
        part.write_text(text, "utf-8")
    print(text)


STUDIES = {"regions": regions.main, "few-shot": few_shot.main, "warm-start": warm_starts.main}

if __name__ == "__main__":
    with exit_with_sentence():
        if sys.argv[1:2] and sys.argv[1] in STUDIES:
            STUDIES[sys.argv[1]](sys.argv[2:])
        else:
            main(sys.argv[1:])
