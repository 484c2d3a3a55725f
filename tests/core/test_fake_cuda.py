"""Every method on a pretended GPU, in bf16 and fp16: nothing mixes devices, nothing waits in the middle of a step."""

from __future__ import annotations

import pytest
import torch

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.base import Model
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.plugins import BUILT_IN_METHODS
from refiner_cli.training.gradient_step import GradientStep
from tests.core.cases import SPACE
from tests.core.fake_cuda import CUDA, pretended_cuda

HALVES = [torch.bfloat16, torch.float16]


def on_cuda(method: str) -> Model:
    """A model of the tiny backbone; call it on the pretended GPU."""
    return build_model(method, load_backbone("tiny", "none"), method_section(method)(), SPACE)


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("method", BUILT_IN_METHODS)
def test_forward_loss_and_look_stay_on_the_device(method: str, precision: torch.dtype) -> None:
    model = on_cuda(method)
    with pretended_cuda():
        model.to(CUDA)
        images = torch.randn(3, 3, 96, 96, device=CUDA)
        truth = torch.tensor([0, 1, 2]).to(CUDA)
        with autocast(model.device, precision), torch.no_grad():
            for space in (SPACE, SPACE.open_world()):
                bank = model.eval().encode_pairs(space)
                scores = model.score(model.encode_images_tta(images), bank)
                total = model.combine(scores, space)
                assert (total.device, total.dtype) == (CUDA, torch.float32)
                assert total.shape == (3, len(space.pairs))
            if model.has_queries:
                assert model.query_attention(images).device == CUDA
        if not model.trainable_parameters():
            return
        step = GradientStep(
            model.train(), SPACE.training(), TrainConfig(batch_size=2), precision,
            encode=lambda: model.encode_pairs(SPACE.training()), scale=lambda loss: loss * 2.0, log=print,
        )  # fmt: skip
        loss, _ = step.backward(images, truth, 0)
        assert (loss.device, loss.dtype) == (CUDA, torch.float32)
        for name, parameter in model.trainable_parameters().items():
            assert parameter.dtype == torch.float32, name
            assert parameter.grad is None or parameter.grad.device == CUDA, name
