"""ONNX: images per second and size of an exported image tower, beside PyTorch on the same cores."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from refiner_cli.bench.images import per_second
from refiner_cli.bench.measure import BenchResult
from refiner_cli.bench.train import BenchMachine, random_images
from refiner_cli.config import Config
from refiner_cli.core.model_io.onnx_export import fixed_scale, trace_image_side
from refiner_cli.core.model_io.onnx_files import require_package
from refiner_cli.core.model_io.onnx_model import open_session
from refiner_cli.core.model_io.onnx_quantize import graph_files, quantize
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.towers.backbone import Backbone
from refiner_cli.data.labels import LabelSpace

BATCH = 16


@torch.no_grad()
def bench_onnx(
    backbone: Backbone, space: LabelSpace, config: Config, folder: Path, machine: BenchMachine
) -> Iterator[BenchResult]:
    """The model's image encoding by PyTorch, and by ONNX Runtime with weights of 32 and 8 bits."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require_package(package, "Measuring ONNX")
    model = build_model(config.method, backbone, config.model, space).eval()
    images = random_images(backbone, BATCH, torch.device("cpu"))
    files = {name: folder / f"{name}.onnx" for name in ("fp32", "int8")}
    with fixed_scale(model):
        trace_image_side(model, files["fp32"])
    shutil.copy(files["fp32"], files["int8"])
    quantize(files["int8"])
    pixels = images.numpy()

    def run(file: Path) -> Callable[[], object]:
        session = open_session(file)
        return lambda: session.run(None, {"images": pixels})

    ways: dict[str, Callable[[], object]] = {"PyTorch": lambda: model.encode_images_tta(images)}
    ways |= {f"ONNX, {name}": run(file) for name, file in files.items()}
    yield from per_second("encode on the CPU", ways, BATCH, machine)
    sizes = {
        name: sum(part.stat().st_size for part in graph_files(file)) / 1e6 for name, file in files.items()
    }
    yield BenchResult("ONNX image tower: fp32", sizes["fp32"], "MB")
    yield BenchResult("ONNX image tower: int8", sizes["int8"], "MB", "fp32", sizes["fp32"] / sizes["int8"])
