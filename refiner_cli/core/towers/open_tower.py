"""Which kind of image tower a model has."""

from __future__ import annotations

import open_clip
from timm.models.eva import Eva, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from refiner_cli.core.towers.feature_map_tower import FeatureMapTower, LastTokensTower, is_feature_map_tower
from refiner_cli.core.towers.image import ImageTower
from refiner_cli.core.towers.open_clip_tower import OpenClipTower
from refiner_cli.core.towers.timm_tower import EvaTower, TimmTower
from refiner_cli.errors import ConfigError


def open_image_tower(visual: nn.Module) -> ImageTower:
    """Wrap the image tower of an open_clip model. Raises ConfigError if its kind is not supported."""
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return OpenClipTower(visual)
    trunk = getattr(visual, "trunk", None)
    if isinstance(trunk, VisionTransformer) and all(isinstance(block, Block) for block in trunk.blocks):
        return TimmTower(visual)
    if isinstance(trunk, Eva) and all(isinstance(b, EvaBlock | EvaBlockPostNorm) for b in trunk.blocks):
        return EvaTower(visual)
    if is_feature_map_tower(visual):
        return FeatureMapTower(visual)
    if isinstance(trunk, VisionTransformerRelPos):
        return LastTokensTower(visual)
    kind = type(visual if trunk is None else trunk).__name__
    raise ConfigError(
        f"The backbone's image tower ({kind}) is not supported.",
        hint="Choose a ViT such as ViT-L-14, ViT-B-32 or ViT-B-16-SigLIP.",
    )
