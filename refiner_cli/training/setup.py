"""Build the trainer of a run: choose the device, load the backbone, build the model."""

from __future__ import annotations

import platform
from types import MappingProxyType
from typing import Any

import open_clip
import torch

from refiner_cli._version import __version__
from refiner_cli.config import Config, TrainConfig
from refiner_cli.core.models.base import MemoryOptions, Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import (
    GIB,
    RuntimeOptions,
    pick_device,
    pick_precision,
    use_deterministic_kernels,
)
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS, DistributedContext
from refiner_cli.core.runtime.loader import pick_num_workers
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.half import cast_frozen
from refiner_cli.core.towers.text_chunks import pick_chunk_size
from refiner_cli.data.benchmark import Benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import ConfigError
from refiner_cli.inference.encoded import EncodedBenchmark
from refiner_cli.training.changes import Asked, change_run, describe_change
from refiner_cli.training.compiled import compile_images
from refiner_cli.training.cross_validation import CrossValidation
from refiner_cli.training.gradient_step import GradientStep
from refiner_cli.training.memory_plan import MemoryPlan, fit_step, memory_left, plain_step
from refiner_cli.training.run_dir import INIT, TOKENS, Run
from refiner_cli.training.token_cache import FrozenBlocksModel, TokenCache
from refiner_cli.training.trainer import Trainer
from refiner_cli.training.warm_start import take_over


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


def frozen_backbone(config: Config, device: torch.device, precision: torch.dtype, log: LogFn) -> Backbone:
    """The backbone on the CPU, its weights in half precision where a GPU computes in it."""
    backbone = load_backbone(config.backbone, config.pretrained, config.seed)
    for note in backbone.notes:
        log(note)
    if device.type == "cpu" or precision == torch.float32:
        return backbone
    log(f"frozen weights in {str(precision).removeprefix('torch.')}, float32 where training learns")
    return cast_frozen(backbone, precision)


def place_model(
    model: Model,
    train: TrainConfig,
    prompts: int,
    device: torch.device,
    precision: torch.dtype,
    log: LogFn,
    ranks: DistributedContext = SINGLE_PROCESS,
) -> None:
    """Move a model to its device, and choose how many of the ``prompts`` of a step it encodes at once."""
    model.to(device)
    text = model.backbone.text
    context = len(text.tokens.encode(getattr(model.config, "prompt_init", "")))
    free = memory_left(model, train, ranks)
    if train.memory_gb:
        log(f"memory planned for {train.memory_gb:g} GB: {free / GIB:.1f} GiB beside the weights")
    size, why = pick_chunk_size(train.text_chunk_size, text, prompts, precision, context, free)
    model.memory = MemoryOptions(size)
    log(f"text chunks of {size} prompts ({why})")


def fitted_step(
    model: Model, space: LabelSpace, train: TrainConfig, precision: torch.dtype, log: LogFn
) -> tuple[GradientStep, MemoryPlan]:
    """A training step as a trainer computes it, to be measured: the model is on its device."""
    step = plain_step(model, space, train, precision, log)
    image = torch.zeros(1, 3, *model.backbone.image_size, device=model.device)
    plan = fit_step(model, space, train, precision, image, log)
    step.micro_batch = plan.micro_batch
    return step, plan


def describe_ranks(ranks: DistributedContext, device: torch.device, batch: int) -> str:
    """What the processes of a training share, as a sentence."""
    shared = f"{ranks.world_size} processes, {batch} images per step shared between them"
    if device.type == "cuda" or ranks.local_size == 1:
        return shared
    return f"{shared}; {ranks.local_size} share the free memory of this machine"


def build_trainer(
    run: Run,
    benchmark: Benchmark,
    log: LogFn,
    ranks: DistributedContext = SINGLE_PROCESS,
    backbone: Backbone | None = None,
) -> Trainer:
    """A trainer at its first step.

    Args:
        backbone: the run's, where it is loaded already.
    """
    config = run.config
    benchmark = benchmark.without(run.skipped)
    device, why_device = pick_device(config.device)
    if ranks.world_size > 1:
        if device.type == "cuda":
            device = torch.device("cuda", ranks.local_rank)
        log(describe_ranks(ranks, device, config.train.batch_size))
    if config.train.deterministic:
        use_deterministic_kernels()
    precision, why_precision = pick_precision(config.precision, device)
    workers, why_workers = pick_num_workers(config.train.num_workers, device)
    log(f"device {device} ({why_device})")
    log(f"precision {str(precision).removeprefix('torch.')} ({why_precision})")
    log(f"{workers} decoding processes ({why_workers})")
    backbone = backbone or frozen_backbone(config, device, precision, log)
    torch.manual_seed(config.seed)
    model = build_model(config.method, backbone, config.model, benchmark.vocabulary)
    if isinstance(benchmark, EncodedBenchmark):
        benchmark.check_usable_by(model, config.method)
    if (run.folder / INIT).is_dir() and not run.checkpoints():
        for line in take_over(run.folder, model, config.init, config.pretrained).lines():
            log(line)
    place_model(model, config.train, len(set(benchmark.pairs["train"])), device, precision, log, ranks)
    count = sum(p.numel() for p in model.trainable_parameters().values())
    log(f"{config.method} on {config.backbone} ({backbone.spec.pretrained}): {count:,} trainable parameters")
    cache = None
    if config.train.cached_views:
        if not isinstance(model, FrozenBlocksModel) or config.train.augment == "none":
            raise ConfigError(
                "train.cached_views needs the method refiner, and train.augment other than none."
            )
        cache = TokenCache(
            folder=run.folder / TOKENS,
            model=model,
            files=list(benchmark.paths("train")),
            views=config.train.cached_views,
            seed=config.seed,
            key=benchmark.fingerprint(),
            precision=precision,
            augment=config.train.augment,
            workers=workers,
        )
        if ranks.is_main:
            cache.fill(log)
        ranks.barrier()
        if not ranks.is_main:
            cache.join(log)
    options = RuntimeOptions(precision, config.train.batch_size, workers)
    folds = cross_validation(run, benchmark, model, options, log).models
    trainer = Trainer(model, benchmark, run, options, log, ranks, cache, folds=folds)
    if trainer.total:
        image = torch.zeros(1, 3, *backbone.image_size, device=device)
        batch = {"batch_size": trainer.schedule.batch_images(0)}  # a small dataset has fewer images than that
        trainer.optimizer_step.gradient_step.micro_batch = fit_step(
            model, trainer.optimizer_step.space, config.train.model_copy(update=batch), precision,
            image if cache is None else cache.tokens(image), log, ranks,
        ).micro_batch  # fmt: skip
    if config.train.compile:  # after the plan, which tries several sizes
        log(compile_images(model))
    return trainer


def cross_validation(
    run: Run, benchmark: Benchmark, model: Model, options: RuntimeOptions, log: LogFn
) -> CrossValidation:
    """The cross-validation that a run's settings ask for, none of it trained yet."""

    def build(part: Run, images: Benchmark) -> Trainer:
        # Device and memory are as the run's own, of which the log has told.
        trainer = build_trainer(part, images, lambda _: None, backbone=model.backbone)
        trainer.restore()
        return trainer

    return CrossValidation(run, benchmark, model, options, build, log)


def resume_trainer(
    run: Run,
    benchmark: Benchmark,
    log: LogFn,
    ranks: DistributedContext = SINGLE_PROCESS,
    asked: Asked = MappingProxyType({}),
) -> Trainer:
    """A trainer at the last complete checkpoint of its run, or at its first step if there is none yet.

    Args:
        asked: settings that the run is to take over, as far as that is possible.

    Raises:
        UsageError: another process is training in the run, or a setting contradicts it.
        DatasetError: the dataset is not the one that the run was started on.
        ModelFileError: every checkpoint is damaged, or the settings in run.json were changed.
    """
    changed = change_run(run, benchmark, asked)
    if changed != run:
        log(describe_change(changed.changes[-1]))
    if ranks.is_main:
        with run.locked():
            run.clean()
    ranks.barrier()
    trainer = build_trainer(changed, benchmark, log, ranks)
    trainer.restore()
    if ranks.is_main and changed != run:  # now that it is known to work: a missing device is not kept
        with run.locked():
            changed.write()
    log(f"resuming after step {trainer.step} of {trainer.total}")
    return trainer
