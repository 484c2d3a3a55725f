"""The parts of the benchmark in order, on one backbone with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from refiner_cli.bench.images import bench_decode, bench_encode, bench_predict, write_noise_photos
from refiner_cli.bench.measure import BenchResult
from refiner_cli.bench.spaces import label_space
from refiner_cli.bench.text import bench_text
from refiner_cli.bench.train import BenchMachine, bench_step
from refiner_cli.config import Config
from refiner_cli.core.runtime.device import pick_device, pick_precision
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.half import cast_frozen
from refiner_cli.machine import cores
from refiner_cli.training.setup import environment


@dataclass(frozen=True)
class BenchOptions:
    """What to measure."""

    parts: tuple[str, ...]  # of text, train, encode, decode, predict, onnx
    spaces: tuple[str, ...]  # label spaces, see bench/spaces.py
    splits: Path | None  # folder of their real pair lists
    rounds: int
    limit: int  # prompts to measure the full context with; 0: all
    photos: int
    folder: Path  # for the generated photos


def run_bench(order: BenchOptions, config: Config, log: LogFn) -> Iterator[BenchResult]:
    """Measure, and yield each figure as soon as it is known."""
    device, why = pick_device(config.device)
    precision, because = pick_precision(config.precision, device)
    log(f"device {device} ({why}), precision {str(precision).removeprefix('torch.')} ({because})")
    machine = BenchMachine(device, precision, order.rounds)
    spaces = {name: label_space(name, order.splits) for name in order.spaces}
    backbone = load_backbone(config.backbone, config.pretrained, config.seed)
    backbone.clip.to(device)
    first = next(iter(spaces.values()))
    if "text" in order.parts:
        for space in spaces.values():
            yield from bench_text(backbone.text, space, rounds=order.rounds, limit=order.limit, device=device)
    if device.type != "cpu":  # as in training; text was measured in float32
        backbone = cast_frozen(backbone, precision)
    if "train" in order.parts:
        for name, space in spaces.items():
            yield from bench_step(name, backbone, space, config, machine, log)
    if "encode" in order.parts:
        yield from bench_encode(backbone, first, config, machine)
    if "onnx" in order.parts:
        from refiner_cli.bench.onnx import bench_onnx

        own = load_backbone(config.backbone, config.pretrained, config.seed)  # in float32 on the CPU
        yield from bench_onnx(own, first, config, order.folder, machine)
    if {"decode", "predict"} & set(order.parts):
        files = write_noise_photos(order.folder, order.photos)
        if "decode" in order.parts:
            yield from bench_decode(backbone, files, machine)
        if "predict" in order.parts:
            yield from bench_predict(backbone, first, config, files, machine)


def describe_machine(config: Config) -> dict[str, Any]:
    """The machine and versions that the figures are valid for."""
    device, _ = pick_device(config.device)
    precision, _ = pick_precision(config.precision, device)
    known = environment()
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "precision": str(precision).removeprefix("torch."),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        **{key: known[key] for key in ("refiner", "python", "torch", "open_clip", "platform")},
    }
