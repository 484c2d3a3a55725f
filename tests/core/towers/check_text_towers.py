"""Every kind of text tower among open_clip's models, shrunken, beside open_clip's own encoder.

By hand: ``python -m tests.core.towers.check_text_towers`` takes a minute and fails beyond 1e-5. Towers that
look for their tokenizer's own end token are left to ``test_tokenizers.py``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import open_clip
import torch

from refiner_cli.core.towers.backbone import BackboneSpec, assemble

PROMPTS = ["a photo of wet dog", "a photo of red car"]
OTHER_KEYS = {"hf_tokenizer_name", "tokenizer_kwargs", "vocab_size", "layers"}
VISION = {"image_size": 16, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}


def kinds() -> dict[str, dict[str, Any]]:
    """One model for every kind of text tower, by name."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        text = config["text_cfg"]
        if "multimodal_cfg" in config or "hf_model_name" in text or text.get("pool_type") == "eos":
            continue
        key = {option: value for option, value in text.items() if option not in OTHER_KEYS}
        whole = [key, config.get("custom_text"), config.get("quick_gelu")]
        small = {**text, "layers": 2, "vocab_size": 49408}
        found.setdefault(
            json.dumps(whole, sort_keys=True), (name, {**config, "text_cfg": small, "vision_cfg": VISION})
        )
    return dict(found.values())


def largest_difference(name: str, config: dict[str, Any]) -> float:
    """Between our two ways to encode the prompts and open_clip's, relative to the largest number."""
    backbone = assemble(BackboneSpec(name, "none", config, {}), None)
    text = backbone.text
    ids = [text.tokens.ids(prompt) for prompt in PROMPTS]
    padded = torch.tensor([row + [text.tokens.pad_id] * (text.context_length - len(row)) for row in ids])
    want = backbone.clip.encode_text(padded)
    states, objects = (
        torch.stack([text.embed_label(prompt.split()[word]) for prompt in PROMPTS]) for word in (3, 4)
    )
    pairs = text.encode_pairs(text.embed_context("a photo of"), states, objects, torch.arange(len(PROMPTS)))
    scale = want.abs().max()
    return max(((found - want).abs().max() / scale).item() for found in (pairs, text.encode_texts(PROMPTS)))


if __name__ == "__main__":
    gaps = {name: largest_difference(name, config) for name, config in kinds().items()}
    sys.stdout.write(f"{len(gaps)} kinds of text tower, largest difference {max(gaps.values()):.1e}\n")
    sys.exit(max(gaps.values()) > 1e-5)
