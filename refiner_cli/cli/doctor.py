"""``refiner doctor``: what this machine offers and what is missing."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

import typer
from rich.text import Text

from refiner_cli._version import __version__
from refiner_cli.cli.console import Json, new_table, terminal

OPTIONAL = {  # package to import -> what it is for, what to install
    "pillow_heif": ("HEIC photos", "pillow-heif"),
    "transformers": ("SigLIP tokenizers", "transformers sentencepiece"),
    "sentencepiece": ("SigLIP tokenizers", "transformers sentencepiece"),
    "fsspec": ("s3://, gs:// and hf://", "fsspec s3fs gcsfs"),
    "s3fs": ("s3://", "fsspec s3fs"),
    "gcsfs": ("gs://", "fsspec gcsfs"),
    "onnx": ("export --format onnx", "onnx onnxruntime onnxscript"),
    "onnxruntime": ("models in ONNX format", "onnxruntime"),
    "onnxscript": ("export --format onnx", "onnx onnxruntime onnxscript"),
    "ray": ("--engine ray", "ray"),
}
FOREIGN = "refiner-cli"  # another project, with the same import name and the same command
MIN_FREE_DISK = 4 * 2**30  # bytes; a benchmark does not fit in less


def doctor(as_json: Json = False) -> None:
    """Check this installation and this machine. Versions, devices, memory, disk, optional packages."""
    checks = [*machine_checks(), *package_checks()]
    if as_json:
        terminal.json({"schema": "refiner.doctor/1", "checks": checks})
    else:
        table = new_table("", "", "found", "advice")
        for check in checks:
            mark = ("ok", "green") if check["ok"] else ("--", "yellow")
            table.add_row(Text.assemble(mark, f" {check['name']}"), check["found"], check["advice"])
        for column in table.columns[1:]:
            column.justify = "left"
        terminal.table(table)
    if not all(check["ok"] for check in checks if check["needed"]):
        raise typer.Exit(6)


def make_check(
    name: str, found: str, *, ok: bool = True, needed: bool = False, advice: str = ""
) -> dict[str, Any]:
    return {"name": name, "found": found, "ok": ok, "needed": needed, "advice": "" if ok else advice}


def machine_checks() -> list[dict[str, Any]]:
    """Versions, device, memory and disk."""
    import open_clip
    import torch

    from refiner_cli.core.runtime.device import free_memory, pick_device, pick_precision
    from refiner_cli.data.paths import home
    from refiner_cli.machine import cores

    device, why = pick_device()
    precision, because = pick_precision("auto", device)
    place = home(os.environ).root
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    disk = shutil.disk_usage(above).free
    return [
        make_check("refiner", __version__),
        make_check("Python", platform.python_version()),
        make_check("PyTorch", torch.__version__),
        make_check("open_clip", open_clip.__version__),
        make_check("device", f"{device} ({why})"),
        make_check("precision", f"{str(precision).removeprefix('torch.')} ({because})"),
        make_check("cores", str(cores())),
        make_check("free memory", f"{free_memory(device) / 2**30:.1f} GiB"),
        make_check(
            "data folder", str(place), ok=os.access(above, os.W_OK), needed=True, advice="set REFINER_HOME"
        ),
        make_check(
            "free disk",
            f"{disk / 2**30:.1f} GiB",
            ok=disk > MIN_FREE_DISK,
            advice="a benchmark needs some GiB",
        ),
    ]


def package_checks() -> list[dict[str, Any]]:
    """The optional packages, and a foreign one whose files replace those of this one."""
    found = []
    for module, (use, install) in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        found.append(
            make_check(
                module,
                "installed" if there else "not installed",
                ok=there,
                advice=f"for {use}: pip install {install}",
            )
        )
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(FOREIGN)
        advice = (
            f"another project that installs the same module and command; pip uninstall {FOREIGN}, "
            "then install refiner-czsl again"
        )
        found.append(make_check(FOREIGN, f"{version} is installed too", ok=False, advice=advice))
    return found
