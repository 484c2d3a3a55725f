"""The tables of the study, in Markdown: mean and standard deviation over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.experiments.trial import FEASIBILITY_MODES, Found, with_clutter
from refiner_cli.experiments.variants import ABLATIONS, AMOUNTS, METHODS, NO_QUERIES, REFINER, Variant
from refiner_cli.metric_names import HEADLINE_METRICS

Results = dict[str, list[Found]]  # by variant; one entry per seed, in one order
# The parts of the study, by the heading of their tables.
TEST, FOLD, HOLDOUT = "The demo's test split", "Folds of held-out training pairs", "Other hold-outs"
SHOWN_METRICS = (
    ("closed", "S"),
    ("closed", "U"),
    ("closed", "HM"),
    ("closed", "AUC"),
    ("open", "HM"),
    ("open", "AUC"),
)
COMPARED_METRICS = (("closed", "HM"), ("closed", "AUC"), ("open", "HM"), ("open", "AUC"))


def format_spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def format_mean(values: Sequence[float]) -> str:
    """Mean and its standard error."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


def values(found: Sequence[Found], world: str, metric: str) -> list[float]:
    return [seed[world][metric] for seed in found]


def table_row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def table_head(*cells: str) -> list[str]:
    return [table_row(*cells), "|" + "---|" * len(cells)]


def variants_table(results: Results, variants: Sequence[Variant]) -> list[str]:
    """One row per variant: its metrics, and Refiner's margin over it, paired by seed."""
    lines = table_head("", *(f"{metric}, {world}" for world, metric in SHOWN_METRICS))
    for variant in variants:
        lines.append(
            table_row(
                variant.title,
                *(format_spread(values(results[variant.name], w, m)) for w, m in SHOWN_METRICS),
            )
        )
    if REFINER not in variants:
        return lines
    lines += ["", "Refiner's margin, mean and deviation of the differences by seed:", ""]
    return lines + margins_table(results, variants, format_spread)


def margins_table(
    results: Results, variants: Sequence[Variant], summarise: Callable[[Sequence[float]], str]
) -> list[str]:
    """One row per other variant: Refiner's metrics minus its own, paired by seed."""
    lines = table_head("over", *(f"{metric}, {world}" for world, metric in COMPARED_METRICS))
    for variant in variants:
        if variant is not REFINER:
            pairs = [
                zip(values(results["refiner"], w, m), values(results[variant.name], w, m), strict=True)
                for w, m in COMPARED_METRICS
            ]
            margins = [[ours - theirs for ours, theirs in pair] for pair in pairs]
            lines.append(table_row(variant.title, *map(summarise, margins)))
    return lines


def clutter_table(results: Results) -> list[str]:
    """Closed-world AUC by the amount of clutter on the test images, and what the queries contribute."""
    lines = table_head("pieces of clutter", REFINER.title, NO_QUERIES.title, "worth of the queries")
    for amount in AMOUNTS:
        world = "closed" if amount == CLUTTER else with_clutter(amount)
        ours, theirs = (values(results[variant.name], world, "AUC") for variant in (REFINER, NO_QUERIES))
        added = [x - y for x, y in zip(ours, theirs, strict=True)]
        lines.append(table_row(str(amount), format_spread(ours), format_spread(theirs), format_spread(added)))
    return lines


def feasibility_table(results: Results) -> list[str]:
    """The open world with each feasibility mode."""
    lines = table_head("feasibility", *HEADLINE_METRICS)
    for title, world in (("none", "open"), *((kind, kind) for kind in FEASIBILITY_MODES)):
        found = results["refiner"]
        lines.append(table_row(title, *(format_spread(values(found, world, m)) for m in HEADLINE_METRICS)))
    return lines


def tables(results: Results) -> str:
    """Every table for which ``results`` has the trials."""
    ours, without = results.get(REFINER.name, []), results.get(NO_QUERIES.name, [])
    methods, parts = (
        [variant for variant in variants if variant.name in results] for variants in (METHODS, ABLATIONS)
    )
    made = [["### Methods", "", *variants_table(results, methods)]] if methods else []
    if parts:
        whole = [REFINER, *parts] if ours else parts
        made.append(["### Parts", "", *variants_table(results, whole)])
    amounts = [with_clutter(amount) for amount in AMOUNTS if amount != CLUTTER]
    if ours and without and all(world in found for world in amounts for found in (*ours, *without)):
        made.append(["### Clutter: closed-world AUC", "", *clutter_table(results)])
    if ours and all(kind in found for kind in FEASIBILITY_MODES for found in ours):
        made.append(["### Feasibility in the open world", "", *feasibility_table(results)])
    return "\n\n".join("\n".join(part) for part in made) + "\n"


def study_text(parts: Mapping[str, Results]) -> str:
    """The tables of every part, and Refiner's margins over folds and other hold-outs together."""
    texts = [f"## {part}\n\n{tables(results)}" for part, results in parts.items()]
    judging = [parts[part] for part in (FOLD, HOLDOUT) if part in parts]
    if len(judging) > 1 and REFINER.name in judging[0]:
        together = {name: [seed for results in judging for seed in results[name]] for name in judging[0]}
        measured = [variant for variant in (*METHODS, *ABLATIONS) if variant.name in together]
        lines = margins_table(together, measured, format_mean)
        texts.append(
            "## Folds and other hold-outs together\n\nRefiner's margin, mean and its standard error:\n\n"
            + "\n".join(lines)
            + "\n"
        )
    return "\n".join(texts)
