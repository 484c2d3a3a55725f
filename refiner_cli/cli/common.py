"""What several commands share: finding a dataset, loading a model, choosing device and precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.console import terminal
from refiner_cli.printable import quoted

if TYPE_CHECKING:
    from refiner_cli.core.model_io.checkpoint import ModelInfo
    from refiner_cli.core.models.base import Model
    from refiner_cli.core.runtime.device import RuntimeOptions
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.training.seeds import SeedRuns

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Workers = Annotated[int, typer.Option(help="Processes that decode images; -1: automatic.")]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A run directory, an exported model directory, hf-hub:OWNER/NAME[@REVISION], or a backbone by "
        "name, NAME or NAME:TAG, such as ViT-L-14, for CLIP zero-shot.",
    ),
]


def process_count(workers: int) -> int:
    """How many processes ``--workers`` means where nothing else chooses: one a core for -1, at least one."""
    from refiner_cli.machine import cores

    return cores() if workers < 0 else max(1, workers)


def open_dataset(text: str) -> Benchmark:
    """The benchmark that a name or a folder means; the demo is drawn if it does not exist yet."""
    from refiner_cli.data.benchmark import load_benchmark
    from refiner_cli.data.download.catalog_files import load_catalogue
    from refiner_cli.data.paths import Home, find_dataset, home

    def place() -> Home:
        return home(os.environ)

    if text == "demo" and not (place().datasets / "demo").is_dir():
        from refiner_cli.demo.dataset import make_demo

        terminal.note("The demo dataset is drawn (once).")
        try:
            make_demo(place().datasets / "demo")
        except OSError:
            if not (place().datasets / "demo").is_dir():  # else another process has drawn it meanwhile
                raise
    return load_benchmark(find_dataset(text, place, lambda: load_catalogue(place().root).datasets))


def open_model(path: Path, device: str, benchmark: Benchmark | None = None) -> tuple[Model, ModelInfo]:
    """A stored model, or CLIP zero-shot on the backbone that ``path`` names, on its device.

    Args:
        benchmark: what a zero-shot model is to know; None: nothing until a vocabulary is given.
    """
    from refiner_cli.core.model_io.checkpoint import read_model
    from refiner_cli.core.model_io.onnx_files import is_onnx
    from refiner_cli.core.model_io.onnx_model import check_runs_on, read_onnx
    from refiner_cli.core.model_io.zero_shot import NO_LABELS, zero_shot_model
    from refiner_cli.core.runtime.device import pick_device
    from refiner_cli.training.run_dir import is_run, model_folder

    path = one_run(path)
    folder = None if is_zero_shot(path) else model_folder(path)
    if folder and is_onnx(folder):
        check_runs_on(device, "auto")
        terminal.note("device cpu (an ONNX export)")
        return read_onnx(folder)
    chosen, reason = pick_device(device)
    if folder is None:
        model, info = zero_shot_model(str(path), benchmark.vocabulary if benchmark else NO_LABELS)
    else:
        model, info = read_model(folder)
        if is_run(path):
            note_unfinished(path, calibrated=bool(model.calibration.chosen_on))
    terminal.note(f"device {chosen} ({reason})")
    model.to(chosen)
    return model, info


def one_run(path: Path) -> Path:
    """The run that a folder of several seeds stands for, which is said; anything else as it is."""
    from refiner_cli.training.seeds import SeedRuns, is_seeds

    if not is_seeds(path):
        return path
    several = SeedRuns.open(path)
    trained, best = trained_seeds(several), several.best()
    terminal.note(f"seed {best} of {path}, the best of {len(trained)} on validation")
    return several.run(best)


def trained_seeds(several: SeedRuns) -> dict[int, Path]:
    """The finished runs of a folder of seeds, by seed; those that are not are named.

    Raises ModelFileError if none is finished.
    """
    trained, folder = several.trained(), several.folder
    if others := several.unfinished():
        named = ", ".join(f"seed {seed} ({state})" for seed, state in others.items())
        terminal.note(
            f"left out of {folder}: {named}; finish with: refiner train --resume --out {quoted(folder)}"
        )
    return trained


def note_unfinished(run: Path, *, calibrated: bool) -> None:
    """Say so if a run is used before its training and its calibration are finished.

    Args:
        calibrated: whether its best checkpoint is; a finished run that got more epochs may have one.
    """
    from refiner_cli.training.run_list import FINISHED, TRAINING, summarise_run

    state = summarise_run(run).state
    if state == FINISHED:
        return
    used = "so far is used" if calibrated else "so far, which is not calibrated, is used"
    finish = "" if state == TRAINING else f"; finish with: refiner train --resume --out {quoted(run)}"
    terminal.note(f"{run} is not finished ({state}): its best checkpoint {used}{finish}")


def is_zero_shot(path: Path) -> bool:
    """Whether MODEL names a backbone; something that exists under that name comes first.

    What a repository of the Hub holds decides what its name means. Raises FetchError if that is unknown.
    """
    from refiner_cli.core.model_io.hub import hub_model
    from refiner_cli.core.model_io.zero_shot import is_backbone_name
    from refiner_cli.core.towers.architectures import HF_HUB

    name = path.as_posix()
    if path.exists() or not is_backbone_name(name):
        return False
    return not name.startswith(HF_HUB) or hub_model(name) is None


def runtime_options(model: Model, precision: str, workers: int, batch: int = 1) -> RuntimeOptions:
    """How to run on the model's device, logging the reasons."""
    from refiner_cli.core.model_io.onnx_model import OnnxModel, check_runs_on
    from refiner_cli.core.runtime.device import RuntimeOptions, pick_precision
    from refiner_cli.core.runtime.loader import pick_num_workers

    if isinstance(model, OnnxModel):
        check_runs_on("auto", precision)
    dtype, why = pick_precision(precision, model.device)
    count, because = pick_num_workers(workers, model.device)
    terminal.note(
        f"precision {str(dtype).removeprefix('torch.')} ({why}), {count} decoding processes ({because})"
    )
    return RuntimeOptions(dtype, batch, count)
