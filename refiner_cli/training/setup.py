"""From a run directory to a training: load the backbone, build the model, choose the machine."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import open_clip
import torch

from refiner_cli import __version__
from refiner_cli.core.models.refiner import Refiner
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import pick_device, pick_precision, repeat_results
from refiner_cli.core.runtime.distributed import ALONE, Ranks
from refiner_cli.core.runtime.loader import pick_workers
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.text_chunks import pick_chunk
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.errors import ConfigError, DatasetError
from refiner_cli.evaluation.scoring import Setting
from refiner_cli.training.run_dir import Run
from refiner_cli.training.token_cache import TokenCache
from refiner_cli.training.trainer import Training

Tell = Callable[[str], None]


def environment() -> dict[str, Any]:
    """What a result may depend on besides configuration and data."""
    return {
        "refiner": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "threads": torch.get_num_threads(),
    }


def start(run: Run, benchmark: Benchmark, tell: Tell, ranks: Ranks = ALONE) -> Training:
    """A training at its first step."""
    config = run.config
    device, why_device = pick_device(config.device)
    if ranks.size > 1:
        if device.type == "cuda":
            device = torch.device("cuda", ranks.local)
        tell(f"{ranks.size} processes, {config.train.batch} images of a step shared out over them")
    if config.train.deterministic:
        repeat_results()
    precision, why_precision = pick_precision(config.precision, device)
    workers, why_workers = pick_workers(config.train.workers, device)
    tell(f"device {device} ({why_device})")
    tell(f"precision {str(precision).removeprefix('torch.')} ({why_precision})")
    tell(f"{workers} decoding processes ({why_workers})")
    backbone = load_backbone(config.backbone, config.pretrained, config.seed)
    torch.manual_seed(config.seed)
    model = build_model(config.method, backbone, config.model, benchmark.vocabulary).to(device)
    model.recompute = config.train.grad_checkpoint
    text = backbone.text
    prompts, context = len(set(benchmark.pairs["train"])), len(text.tokens.split(config.model.context))
    text.chunk, why_chunk = pick_chunk(config.train.text_chunk, text, prompts, device, precision, context)
    tell(f"text chunks of {text.chunk} prompts ({why_chunk})")
    count = sum(p.numel() for p in model.learned().values())
    tell(f"{config.method} on {config.backbone} ({backbone.spec.pretrained}): {count:,} learned parameters")
    cache = None
    if config.train.cache:
        if not isinstance(model, Refiner) or config.train.augment == "none":
            raise ConfigError("train.cache needs the method refiner and a train.augment.")
        cache = TokenCache(
            folder=run.folder / "tokens",
            model=model,
            files=list(benchmark.paths("train")),
            views=config.train.cache,
            seed=config.seed,
            key=benchmark.fingerprint(),
            precision=precision,
            augment=config.train.augment,
            workers=workers,
        )
        if ranks.first:
            cache.fill(tell)
        ranks.wait()
        if not ranks.first:  # finds everything there
            cache.fill(tell)
    setting = Setting(precision, config.train.batch, workers)
    return Training(model, benchmark, run, setting, tell, ranks, cache)


def resume(run: Run, benchmark: Benchmark, tell: Tell, ranks: Ranks = ALONE) -> Training:
    """A training at the last whole checkpoint of its run, or at its first step if there is none yet.

    Raises:
        DatasetError: the dataset is not the one the run began with.
        ModelFileError: the checkpoint is damaged.
    """
    if benchmark.fingerprint() != run.dataset.fingerprint:
        raise DatasetError(f"The dataset {benchmark.root} changed since the run {run.folder} began.")
    training = start(run, benchmark, tell, ranks)
    saved = run.checkpoints()
    if saved:
        training.restore(saved[-1])
    tell(f"going on after step {training.step} of {training.total}")
    return training
