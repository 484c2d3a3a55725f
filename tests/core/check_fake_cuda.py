"""Everything that a method computes, on a pretended GPU; prints the waits of a training step as JSON.

Started by ``test_fake_cuda.py`` with a pretended driver. On a machine with a GPU it runs as it is:
``python -m tests.core.check_fake_cuda DEMO`` with the folder of a small demo benchmark.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import DEFAULT, patch

import torch

from refiner_cli.config import Config, TrainConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import RuntimeOptions, autocast
from refiner_cli.core.runtime.distributed import SINGLE_PROCESS
from refiner_cli.core.runtime.loader import ImageBatch
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.core.towers.half import cast_frozen
from refiner_cli.data.benchmark import Benchmark, load_benchmark
from refiner_cli.data.labels import LabelSpace
from refiner_cli.evaluation.scoring import no_progress
from refiner_cli.inference.indexing import split_vectors, vector_roles
from refiner_cli.inference.query import Term, encode_query
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.search import BestImages, TypicalScore, term_scores
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training.calibrate import fit_hubness
from refiner_cli.training.optimizer_step import OptimizerStep
from refiner_cli.training.schedule import Schedule
from refiner_cli.training.validation_loss import measure_plain
from tests.core.cases import SPACE
from tests.core.fake_cuda import CUDA, HostSyncs, pretended_cuda

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIDE = 32  # pixels
BACKBONE = {  # shapes alone matter: a small one
    "embed_dim": 64,
    "vision_cfg": {"image_size": SIDE, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
SMALL = {"batch_size": 3, "num_workers": 0}


def on_the_host(method: str, space: LabelSpace, precision: torch.dtype) -> Model:
    """A model on a small backbone with random weights, the frozen ones in half precision."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.json"
        file.write_text(json.dumps(BACKBONE), "utf-8")
        backbone = cast_frozen(load_backbone(str(file), "none"), precision)
    return build_model(method, backbone, method_section(method)(), space)


def forward(model: Model, precision: torch.dtype) -> None:
    """Scores of both worlds and what the queries look at, in float32 on the device."""
    images = torch.randn(3, 3, SIDE, SIDE, device=CUDA)
    with autocast(model.device, precision), torch.no_grad():
        for space in (SPACE, SPACE.open_world()):
            bank = model.eval().encode_pairs(space)
            total = model.combine(model.score(model.encode_images_tta(images), bank), space)
            assert (total.device, total.dtype) == (CUDA, torch.float32)
            assert total.shape == (3, len(space.pairs))
        if model.has_queries:
            assert model.query_attention(images).device == CUDA


def step(model: Model, precision: torch.dtype, syncs: HostSyncs) -> dict[str, int]:
    """One optimizer step in two pieces, and how often it waits for the device."""
    config = Config.model_validate({"train": SMALL, "precision": "fp32"})
    parameters = model.trainable_parameters()
    optimizer_step = OptimizerStep(
        model, SPACE.training(), torch.tensor([0, 1, 2]), [Path()] * 3, Schedule(config.train, 3, 0), config,
        precision, SINGLE_PROCESS, print,
    )  # fmt: skip
    optimizer_step.gradient_step.micro_batch = 2
    batch = ImageBatch(torch.randn(3, 3, SIDE, SIDE, device=CUDA), torch.tensor([0, 1, 2]))
    syncs.found.clear()
    outcome = optimizer_step.run(batch, 0, lambda: False)
    assert outcome.problem is None
    for name, parameter in parameters.items():
        assert (parameter.dtype, parameter.device) == (torch.float32, CUDA), name
        assert parameter.grad is None or parameter.grad.device == CUDA, name
    return dict(syncs.found)


def calibration(model: Model, precision: torch.dtype, benchmark: Benchmark) -> None:
    """What is fitted and measured after training, from files."""
    options = RuntimeOptions(precision, 64, 0)
    fit_hubness(model, benchmark, options)
    by_loss = TrainConfig(selection="loss")
    # A pretended GPU has no values that could be ranked, and its loss is 0.
    with patch.multiple("refiner_cli.training.validation_loss", WorldScorer=DEFAULT, sweep=DEFAULT):
        assert measure_plain(model, benchmark, options, by_loss, no_progress)[1] == 0


def index_and_search(model: Model, precision: torch.dtype) -> None:
    """Vectors for an index, a query, and the best of them; and a prediction."""
    recogniser = Recogniser(model, precision=precision)
    images = torch.randn(3, 3, SIDE, SIDE)
    assert len(recogniser.predict_tensor(images, top_k=2)) == 3
    if not model.scores_from_vectors:
        return
    vectors = recogniser.encode(images)
    for row in split_vectors(vectors, vector_roles(model)):
        assert {(v.device.type, v.dtype) for v in row.values()} == {("cpu", torch.float16)}
    with autocast(model.device, precision):
        query = encode_query(model, [Term("pair", "wet", "dog"), Term("state", "red")])
    scores = term_scores(vectors, query, model.backbone.logit_scale)
    assert scores.device == CUDA
    TypicalScore.empty(2).update(scores)
    usable = torch.ones(3, dtype=torch.bool).to(CUDA)
    BestImages.empty(2).update(None, 0, scores @ query.signs, usable)  # type: ignore[arg-type]


def main(folder: Path) -> None:
    benchmark, waits = load_benchmark(folder), {}
    for method in BUILT_IN_METHODS:
        for name, precision in HALVES.items():
            model = on_the_host(method, SPACE, precision)
            with pretended_cuda() as syncs:
                forward(model.to(CUDA), precision)
                if model.trainable_parameters():
                    waits[f"{method} {name}"] = step(model, precision, syncs)
                if name == "bf16":
                    index_and_search(model, precision)
        model = on_the_host(method, benchmark.vocabulary, torch.float16)
        with pretended_cuda():
            calibration(model.to(CUDA), torch.float16, benchmark)
    print(json.dumps(waits))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
