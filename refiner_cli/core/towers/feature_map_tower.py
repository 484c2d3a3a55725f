"""Networks used as a whole: the last feature map of ConvNeXt, ResNet and Swin, or the last tokens, is read.

Such a tower has no blocks that tokens could be added to or adapters could run beside (``depth`` is 0): what
a method learns in the image tower is off, what it learns in the text tower and behind both is on.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import open_clip
from timm.models.convnext import ConvNeXt
from timm.models.fastvit import FastVit
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from refiner_cli.core.towers.image import FULL_ATTENTION, AttentionSpec, ParallelAdapter
from refiner_cli.errors import ConfigError

TIMM_TRUNKS = (ConvNeXt, FastVit, SwinTransformer)
ResNet = open_clip.modified_resnet.ModifiedResNet


class WholeTower:
    """What towers without blocks have in common."""

    depth = 0
    num_pooled_tokens: int | None = None

    def block(
        self, index: int, x: Tensor, adapters: ParallelAdapter | None, spec: AttentionSpec = FULL_ATTENTION
    ) -> NoReturn:
        del x, adapters, spec
        raise IndexError(f"The image tower has no block {index}.")

    def token_values(self, index: int, x: Tensor) -> NoReturn:
        del x
        raise IndexError(f"The image tower has no block {index}.")

    def attention_weights(self, index: int, x: Tensor) -> NoReturn:
        del index, x
        raise ConfigError(
            "The backbone's image tower has no attention weights.", hint="Predict without --heatmaps."
        )


class LastTokensTower(WholeTower):
    """timm's ViT with relative positions, whose attention takes the tokens of an image and no others.

    Args:
        visual: open_clip's TimmModel around it.
    """

    def __init__(self, visual: open_clip.timm_model.TimmModel) -> None:
        self.visual = visual
        self.trunk: Any = visual.trunk  # timm's VisionTransformerRelPos
        self.width = self.trunk.embed_dim
        self.patch_size = int(self.trunk.patch_embed.feat_ratio())
        self.num_prefix_tokens = self.trunk.num_prefix_tokens

    def embed(self, images: Tensor) -> Tensor:
        """``B x 3 x H x W`` preprocessed images -> ``B x N x W`` tokens behind the last block."""
        return self.trunk.forward_features(images)

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.visual.head(self.trunk.forward_head(x)), x

    def project_tokens(self, tokens: Tensor) -> Tensor:
        return self.visual.head(self.trunk.head(self.trunk.fc_norm(tokens)))


class FeatureMapTower(WholeTower):
    """A network whose last feature map, ``B x W x h x w``, becomes ``B x L x W`` tokens, row by row.

    Args:
        visual: open_clip's ModifiedResNet, or its TimmModel around one of ``TIMM_TRUNKS``.
    """

    num_prefix_tokens = 0
    width: int

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.trunk: Any = getattr(visual, "trunk", None)
        height, width = visual.image_size if self.trunk is not None else (visual.image_size,) * 2
        self.aspect = height / width
        if self.trunk is None:
            self.width, self.patch_size = visual.attnpool.c_proj.in_features, 32  # five halvings
        else:
            self.width = self.trunk.num_features
            self.patch_size = int(self.trunk.feature_info[-1]["reduction"])
        self.channels_last = getattr(self.trunk, "output_fmt", "NCHW") == "NHWC"

    def embed(self, images: Tensor) -> Tensor:
        """``B x 3 x H x W`` preprocessed images -> ``B x L x W`` tokens: the network without its head."""
        if self.trunk is None:
            x = self.visual.stem(images)
            for layer in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
                x = layer(x)
        else:
            x = self.trunk.forward_features(images)
        return x.flatten(1, 2) if self.channels_last else x.flatten(2).transpose(1, 2)

    def feature_map(self, tokens: Tensor) -> Tensor:
        """The tokens of a complete image as the network's head takes them."""
        rows = round(math.sqrt(tokens.shape[1] * self.aspect))
        x = tokens.unflatten(1, (rows, -1))  # B x h x w x W
        return x if self.channels_last else x.permute(0, 3, 1, 2)

    def pool_and_project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feature_map = self.feature_map(x)
        if self.trunk is None:
            return self.visual.attnpool(feature_map), x
        return self.visual.head(self.trunk.forward_head(feature_map)), x

    def project_tokens(self, tokens: Tensor) -> Tensor:
        if self.trunk is None:  # a token that attends to itself alone
            pool = self.visual.attnpool
            return pool.c_proj(pool.v_proj(tokens))
        single = tokens.flatten(0, 1)[:, None, None]  # every token as a map of one pixel, BL x 1 x 1 x W
        single = single if self.channels_last else single.permute(0, 3, 1, 2)
        return self.visual.head(self.trunk.forward_head(single)).unflatten(0, tokens.shape[:2])


def is_feature_map_tower(visual: nn.Module) -> bool:
    """Whether :class:`FeatureMapTower` can take an image tower."""
    if isinstance(visual, ResNet):
        return True
    has_own_pool = "pool" in dict(getattr(visual, "head", nn.Identity()).named_children())
    return isinstance(getattr(visual, "trunk", None), TIMM_TRUNKS) and not has_own_pool
