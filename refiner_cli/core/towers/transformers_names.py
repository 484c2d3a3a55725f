"""CLIP weights as the transformers library names them, under open_clip's names.

transformers keeps query, key and value apart and stores the projections as linear layers (``D x W``);
open_clip has one ``3W x W`` matrix and multiplies with ``W x D``.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

EMBEDDING_NAME = "text_model.embeddings.token_embedding.weight"
SAME_LAYOUT = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
}
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
NORM_LAYERS = {
    "text_model.final_layer_norm": "ln_final",
    "vision_model.pre_layrnorm": "visual.ln_pre",  # the library's own spelling
    "vision_model.post_layernorm": "visual.ln_post",
}
LAYER = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
LAYER_PARTS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def has_transformers_names(state: dict[str, Tensor]) -> bool:
    """Whether a state dict is one of transformers' CLIPModel."""
    return EMBEDDING_NAME in state


def to_open_clip_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' CLIPModel as one of open_clip's CLIP.

    What has no counterpart keeps its name, so that loading names it.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        layer = LAYER.fullmatch(name)
        norm, _, last = name.rpartition(".")
        if name.endswith("embeddings.position_ids"):  # 0, 1, 2, ...: stored by old versions
            continue
        if name in SAME_LAYOUT:
            renamed[SAME_LAYOUT[name]] = value
        elif name in TRANSPOSED:
            renamed[TRANSPOSED[name]] = value.T
        elif norm in NORM_LAYERS:
            renamed[f"{NORM_LAYERS[norm]}.{last}"] = value
        elif layer is None:
            renamed[name] = value
        else:
            tower, index, part, kind = layer.groups()
            block = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{index}"
            if part == "self_attn.q_proj":
                own = f"{tower}_model.encoder.layers.{index}.self_attn"
                rows = [state[f"{own}.{one}_proj.{kind}"] for one in "qkv"]
                renamed[f"{block}.attn.in_proj_{kind}"] = torch.cat(rows)
            elif part in LAYER_PARTS:
                renamed[f"{block}.{LAYER_PARTS[part]}.{kind}"] = value
            elif part not in {"self_attn.k_proj", "self_attn.v_proj"}:
                renamed[name] = value
    return renamed
