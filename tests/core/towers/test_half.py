"""Frozen weights in half precision: the same numbers under autocast, and the same identity."""

from __future__ import annotations

import pytest
import torch

from refiner_cli.config import TrainConfig, method_section
from refiner_cli.core.models.registry import build_model
from refiner_cli.core.runtime.device import autocast
from refiner_cli.core.towers.backbone import Backbone, load_backbone
from refiner_cli.core.towers.half import cast_frozen
from tests.core.cases import SPACE


def loss_and_gradients(backbone: Backbone, method: str, pixels: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(method, backbone, method_section(method)(), SPACE).train()
    with autocast(model.device, torch.bfloat16):
        scores = model.score(model.encode_images(pixels), model.encode_pairs(SPACE.training()))
        loss = model.loss(scores, torch.tensor([0, 1]), SPACE.training(), TrainConfig())
    loss.backward()
    found = [p.grad for p in model.trainable_parameters().values() if p.grad is not None]
    assert all(grad.dtype == torch.float32 for grad in found)
    return [loss.detach(), *found]


@pytest.mark.parametrize("method", ["refiner", "csp", "troika"])
def test_casting_once_gives_the_numbers_of_casting_in_every_step(
    pixels: torch.Tensor, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cast = load_backbone("tiny", "built-in"), load_backbone("tiny", "built-in")
    cast = cast_frozen(cast, torch.bfloat16)
    # On a CPU a shortcut of PyTorch's attention ignores autocast, and with it the precision.
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    ours, want = loss_and_gradients(cast, method, pixels), loss_and_gradients(plain, method, pixels)
    assert len(ours) == len(want) > 1
    for one, other in zip(ours, want, strict=True):
        assert torch.equal(one, other)


def test_the_weights_take_half_the_room_and_keep_their_identity() -> None:
    plain = load_backbone("tiny", "built-in")
    known = plain.fingerprint()
    assert cast_frozen(plain, torch.float32) is plain
    cast = cast_frozen(plain, torch.bfloat16)
    assert cast.fingerprint() == known
    kinds = {name: p.dtype for name, p in cast.clip.named_parameters()}
    assert kinds["visual.transformer.resblocks.0.mlp.c_fc.weight"] == torch.bfloat16
    assert kinds["transformer.resblocks.0.attn.in_proj_weight"] == torch.bfloat16
    assert kinds["visual.ln_post.weight"] == kinds["token_embedding.weight"] == torch.float32
    sizes = [p.numel() for p in cast.clip.visual.parameters()]
    half = [p.numel() for p in cast.clip.visual.parameters() if p.dtype == torch.bfloat16]
    assert sum(half) > 0.95 * sum(sizes)
