"""The tables of the study, in Markdown: mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from refiner_cli.demo.scenes import CLUTTER
from refiner_cli.experiments.trial import PRIORS, Found, with_clutter
from refiner_cli.experiments.variants import AMOUNTS, METHODS, NO_QUERIES, PARTS, REFINER, Variant
from refiner_cli.metric_names import HEADLINE_METRICS

Results = Mapping[str, Sequence[Found]]  # by arm, one a seed, the seeds in one order
COLUMNS = (
    ("closed", "S"),
    ("closed", "U"),
    ("closed", "HM"),
    ("closed", "AUC"),
    ("open", "HM"),
    ("open", "AUC"),
)
JUDGED = (("closed", "HM"), ("closed", "AUC"), ("open", "HM"), ("open", "AUC"))


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def values(found: Sequence[Found], world: str, metric: str) -> list[float]:
    return [seed[world][metric] for seed in found]


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def head(*cells: str) -> list[str]:
    return [row(*cells), "|" + "---|" * len(cells)]


def variants_table(results: Results, arms: Sequence[Variant]) -> list[str]:
    """One row an arm: metrics, and what Refiner has more, paired by seed."""
    lines = head("", *(f"{metric}, {world}" for world, metric in COLUMNS))
    for arm in arms:
        lines.append(row(arm.title, *(spread(values(results[arm.name], w, m)) for w, m in COLUMNS)))
    if REFINER not in arms:
        return lines
    lines += ["", "Refiner's lead, mean and deviation of the differences by seed:", ""]
    lines += head("over", *(f"{metric}, {world}" for world, metric in JUDGED))
    for arm in arms:
        if arm is not REFINER:
            pairs = [
                zip(values(results["refiner"], w, m), values(results[arm.name], w, m), strict=True)
                for w, m in JUDGED
            ]
            lines.append(row(arm.title, *(spread([ours - theirs for ours, theirs in p]) for p in pairs)))
    return lines


def clutter_table(results: Results) -> list[str]:
    """Closed-world AUC by the amount of clutter on the test pictures, and what the queries add."""
    lines = head("pieces of clutter", REFINER.title, NO_QUERIES.title, "what the queries add")
    for amount in AMOUNTS:
        world = "closed" if amount == CLUTTER else with_clutter(amount)
        ours, theirs = (values(results[arm.name], world, "AUC") for arm in (REFINER, NO_QUERIES))
        added = [x - y for x, y in zip(ours, theirs, strict=True)]
        lines.append(row(str(amount), spread(ours), spread(theirs), spread(added)))
    return lines


def prior_table(results: Results) -> list[str]:
    """The open world with each feasibility prior."""
    lines = head("feasibility", *HEADLINE_METRICS)
    for title, world in (("none", "open"), *((kind, kind) for kind in PRIORS)):
        found = results["refiner"]
        lines.append(row(title, *(spread(values(found, world, m)) for m in HEADLINE_METRICS)))
    return lines


def tables(results: Results) -> str:
    """Everything that ``results`` allows to be said."""
    ours, without = results.get(REFINER.name, []), results.get(NO_QUERIES.name, [])
    methods, parts = ([arm for arm in arms if arm.name in results] for arms in (METHODS, PARTS))
    made = [["### Methods", "", *variants_table(results, methods)]] if methods else []
    if parts:
        whole = [REFINER, *parts] if ours else parts
        made.append(["### Parts", "", *variants_table(results, whole)])
    amounts = [with_clutter(amount) for amount in AMOUNTS if amount != CLUTTER]
    if ours and without and all(world in found for world in amounts for found in (*ours, *without)):
        made.append(["### Clutter: closed-world AUC", "", *clutter_table(results)])
    if ours and all(kind in found for kind in PRIORS for found in ours):
        made.append(["### Feasibility in the open world", "", *prior_table(results)])
    return "\n\n".join("\n".join(part) for part in made) + "\n"
