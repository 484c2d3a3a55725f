"""``refiner info``: describe a dataset, a run or a model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refiner_cli.cli.common import is_zero_shot, open_dataset
from refiner_cli.cli.console import Json, new_table, terminal
from refiner_cli.cli.outputs import HTML_SUFFIXES, OutputFile, check_outputs
from refiner_cli.errors import UsageError
from refiner_cli.metric_names import HEADLINE_METRICS, UNDEFINED, format_metric
from refiner_cli.settings import toml_text

if TYPE_CHECKING:
    from refiner_cli.data.benchmark import Benchmark


def info(
    what: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A dataset (catalogue name or folder), a run, an exported model or a backbone.",
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page about a dataset, with sample images."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a dataset, a run or a model."""
    from refiner_cli.training.seeds import is_seeds

    folder = Path(what)
    check_outputs([OutputFile("--html", page, HTML_SUFFIXES)], [folder])
    if not folder.exists() and is_zero_shot(folder):
        kind, describe = "backbone", partial(describe_backbone, what)
    elif is_seeds(folder):
        kind, describe = "folder of seeds", partial(describe_seeds, folder)
    elif what.startswith("hf-hub:") or any((folder / name).is_file() for name in ("run.json", "config.json")):
        kind, describe = "model", partial(describe_model, folder)
    else:
        kind, describe = "dataset", None
    if describe:
        if page:
            raise UsageError(f"--html describes a dataset, and {what} is a {kind}.", hint="Leave --html out.")
        facts = describe()
    else:
        benchmark = open_dataset(what)
        facts = describe_dataset(benchmark)
        if page:
            from refiner_cli.data.overview import write_overview

            write_overview(page, benchmark)
            terminal.note(f"page {page}")
    if as_json:
        terminal.json({"schema": "refiner.info/1", **facts})
        return
    show_facts(what, facts)


def show_facts(title: str, facts: dict[str, Any]) -> None:
    """A table of everything but the settings of a run, which have one of their own."""
    settings = facts.pop("settings", {})
    if "calibration" in facts:
        facts["calibration"] = shorten_calibration(facts["calibration"])
    table = new_table(title, "", "")
    for name, value in facts.items():
        for key, inner in value.items() if isinstance(value, dict) else [("", value)]:
            shown = format_metric(inner) if key in HEADLINE_METRICS else format_fact(inner)
            table.add_row(f"{name} {key}".strip().replace("_", " "), shown)
    tables = [table]
    if settings:
        tables.append(new_table("Settings", "", ""))
        for key, value in settings.items():
            tables[-1].add_row(key, toml_text(value))
    for one in tables:
        one.columns[0].no_wrap = True  # a key is copied
        one.columns[1].justify = "left"
        terminal.table(one)


def shorten_calibration(calibration: dict[str, Any]) -> dict[str, Any]:
    """A calibration for a table: of both worlds the temperatures, and the precisions that are promised."""
    short = {key: value for key, value in calibration.items() if key not in {"closed", "open"}}
    for world in ("closed", "open"):
        confidence = calibration.get(world) or {}
        for level, value in confidence.get("temperatures", {}).items():
            short[f"temperature {level} {world}"] = f"{value:.2f}"
        kept = [one for one in confidence.get("promises", []) if one["pair"]["probability"] is not None]
        if kept:
            short[f"highest precision {world}"] = f"{kept[-1]['precision']:g} of pairs"
    return short


def describe_model(folder: Path) -> dict[str, Any]:
    from refiner_cli.config import flatten
    from refiner_cli.core.model_io.checkpoint import read_config
    from refiner_cli.core.model_io.onnx_files import is_onnx
    from refiner_cli.training.run_dir import Run, is_run, model_folder
    from refiner_cli.training.run_list import summarise_run

    place = model_folder(folder)
    if is_onnx(place):
        return describe_onnx(place)
    run = Run.open(folder) if is_run(folder) else None
    config = read_config(place)
    metrics = config["metrics"]
    return {
        "kind": "model",
        **{key: config[key] for key in ("method", "dataset", "step")},
        "backbone": {key: config["backbone"][key] for key in ("name", "pretrained", "included")},
        "labels": {name: len(names) for name, names in config["labels"].items()},
        "validation": {key: metrics[key] for key in HEADLINE_METRICS if key in metrics},
        "calibration": config["calibration"],
        **({"state": summarise_run(folder).state, "settings": dict(flatten(run.config.model_dump())),
            "changes": list(run.changes), "skipped_images": list(run.skipped)} if run else {}),
    }  # fmt: skip


def describe_seeds(folder: Path) -> dict[str, Any]:
    """Several runs that differ in their seed: what each reached, and which one other commands take."""
    from refiner_cli.training.run_dir import Run
    from refiner_cli.training.run_files import read_best
    from refiner_cli.training.seeds import SeedRuns, mean_and_deviation

    several = SeedRuns.open(folder)
    trained, best = several.trained(), several.best()
    records = {seed: (read_best(run) or {})["val"] for seed, run in trained.items()}
    config = Run.open(several.run(best)).config
    return {
        "kind": "seeds",
        "method": config.method,
        "backbone": {"name": config.backbone, "pretrained": config.pretrained},
        "seeds": list(several.seeds),
        **{f"seed {seed}": {name: val[name] for name in HEADLINE_METRICS} for seed, val in records.items()},
        **mean_and_deviation(list(records.values())),
        "unfinished": {f"seed {seed}": state for seed, state in several.unfinished().items()},
        "taken by predict, index and export": str(several.run(best)),
    }


def describe_onnx(folder: Path) -> dict[str, Any]:
    from refiner_cli.core.model_io.onnx_files import read_onnx_config

    config, _ = read_onnx_config(folder)
    return {
        "kind": "onnx",
        **{key: config[key] for key in ("method", "dataset", "step", "precision")},
        "backbone": {key: config["backbone"][key] for key in ("name", "pretrained")},
        "labels": {name: len(names) for name, names in config["labels"].items()},
        "validation": {key: config["metrics"][key] for key in HEADLINE_METRICS if key in config["metrics"]},
        "calibration": config["calibration"],
        "agreement": config["agreement"],
    }


def describe_backbone(name: str) -> dict[str, Any]:
    """A backbone that was not trained, from open_clip's own tables: nothing is downloaded."""
    from refiner_cli.core.model_io.zero_shot import split_name
    from refiner_cli.core.towers.architectures import find_architecture
    from refiner_cli.core.towers.weights import find_weights

    model, tag = split_name(name)
    architecture = find_architecture(model)
    if tag:
        find_weights(architecture, tag)  # or there is no such tag
    config = architecture.config
    vision, text = config["vision_cfg"], config["text_cfg"]
    return {
        "kind": "backbone", "name": model, "tag": tag or None, "joint_width": config["embed_dim"],
        "image_size": vision.get("image_size", 224), "context_length": text.get("context_length", 77),
    }  # fmt: skip


def describe_dataset(benchmark: Benchmark) -> dict[str, Any]:
    from refiner_cli.data.overview import split_facts

    return {
        "kind": "dataset", "name": benchmark.name, "path": str(benchmark.root),
        "states": len(benchmark.states), "objects": len(benchmark.objects),
        **{split: part.to_json() for split, part in split_facts(benchmark).items()},
    }  # fmt: skip


def format_fact(value: Any) -> str:
    """A value of a description: nothing is "-", of pairs with their images the first three."""
    if value is None or value in ("", [], ()):
        return UNDEFINED
    if isinstance(value, list) and all(isinstance(one, dict) and "images" in one for one in value):
        return ", ".join(f"{pair['state']} {pair['object']} ({pair['images']})" for pair in value[:3])
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
