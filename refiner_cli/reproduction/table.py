"""The results of a reproduction as JSON and as Markdown, beside the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refiner_cli.metric_names import HEADLINE_METRICS, UNDEFINED
from refiner_cli.reproduction.published import PUBLISHED, published_row
from refiner_cli.training.seeds import mean_and_deviation

SCHEMA = "refiner.reproduce/1"
# What is fitted once for both protocols.
FITTED_BY_LEGACY = {
    "open mask": "The mask is the published code's, which multiplies scores and may double those of seen "
    "pairs; its threshold is the best one by the legacy protocol.",
    "open soft": "Lambda is the best one by the legacy protocol.",
}


def summary_rows(results: Sequence[dict[str, Any]], benchmark: str, feasibility: str) -> list[dict[str, Any]]:
    """One row per method, world and protocol: mean and deviation over the seeds, and the published figures.

    The published open world is masked, so its figures stand beside the masked world.
    """
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [result["test"] for result in results if result["method"] == method]
        for world in runs[0]:
            of = "open" if world == f"open {feasibility}" else world if world == "closed" else ""
            for protocol in runs[0][world]:
                known = published_row(method)
                printed = known.figures(benchmark, of) if known and of and protocol == "legacy" else None
                rows.append(
                    {
                        "method": method,
                        "world": world,
                        "protocol": protocol,
                        "seeds": len(runs),
                        **mean_and_deviation([run[world][protocol] for run in runs]),
                        "published": dict(zip(HEADLINE_METRICS, printed, strict=True)) if printed else None,
                        "source": known.source if known and printed else None,
                    }
                )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: tables by world and protocol, then what the figures depend on."""
    rows = report["summary"]
    lines = [
        f"# {report['benchmark']}, reproduced",
        "",
        f"Mean and deviation over {report['seeds']} seeds on the test split, in percent.",
        "Checkpoints, inference weights and feasibility were chosen on validation.",
        "",
        f"Backbone, weights, fingerprint: {report['backbone']}.",
        "Published figures are of CLIP ViT-L/14, those of the open world masked by feasibility from GloVe.",
    ]
    for world, protocol in dict.fromkeys((row["world"], row["protocol"]) for row in rows):
        lines += ["", f"## {world} world, protocol {protocol}", ""]
        if protocol != "legacy" and (chosen := FITTED_BY_LEGACY.get(world)):
            lines += [f"{chosen} Only the sweep over biases is exact.", ""]
        lines += ["| | " + " | ".join(HEADLINE_METRICS) + " | source |", "|---|" + "---|" * 5]
        for row in rows:
            if (row["world"], row["protocol"]) == (world, protocol):
                here = [mean_cell(row["mean"][name], row["deviation"][name]) for name in HEADLINE_METRICS]
                lines.append(f"| {row['method']}, here | {' | '.join(here)} | this report |")
                if row["published"]:
                    printed = [f"{row['published'][name]:.1f}" for name in HEADLINE_METRICS]
                    lines.append(f"| {row['method']}, published | {' | '.join(printed)} | {row['source']} |")
        lines += other_methods(report["benchmark"], world, protocol, report["feasibility"])
    facts = made_with(report["runs"]) | {
        "dataset": report["dataset"]["fingerprint"],
        **{f"sha256 of {file}": pin["sha256"] for file, pin in report["dataset"]["archives"].items()},
        "word vectors": report["vectors"],
    }
    lines += ["", "## Made with", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "| run | step | sha256 of the weights |", "|---|---|---|"]
    for run in report["runs"]:
        lines.append(f"| {run['method']}, seed {run['seed']} | {run['step']} | {run['weights_sha256']} |")
    return "\n".join(lines) + "\n"


def made_with(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """When, where and with what command the runs were made; where they differ, each fact once."""
    return {
        name: ", ".join(dict.fromkeys(str(run["made"].get(name, UNDEFINED)) for run in runs))
        for name in runs[0]["made"]
    }


def other_methods(benchmark: str, world: str, protocol: str, feasibility: str) -> list[str]:
    """Rows of published methods that refiner does not have."""
    of = "open" if world == f"open {feasibility}" else world
    if protocol != "legacy" or of not in {"closed", "open"} or (of == "open" and world == "open"):
        return []
    found = []
    for row in PUBLISHED:
        figures = row.figures(benchmark, of)
        if not row.method and figures:
            printed = " | ".join(f"{value:.1f}" for value in figures)
            found.append(f"| {row.name}, published | {printed} | {row.source} |")
    return found


def mean_cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return UNDEFINED
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"
