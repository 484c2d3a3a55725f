"""The table of open_clip's models: which work, how they are read, and why the others do not.

By hand: ``python -m tests.core.towers.model_table > models.md``. Models are built without memory for
their weights and nothing is downloaded, so the table takes a minute or two. The sizes of the text towers that
open_clip names by their repository are written down here, as published there.
"""

from __future__ import annotations

import collections
import sys
from dataclasses import dataclass

import open_clip
import torch

from refiner_cli.core.towers.architectures import contrastive_part, find_architecture, preprocess_config
from refiner_cli.core.towers.backbone import BackboneSpec, assemble
from refiner_cli.core.towers.transformers_config import SIZES
from refiner_cli.core.towers.weights_profile import tag_profile
from refiner_cli.errors import ConfigError

HEADER = (
    "| model | works | parts | image | patch | tokenizer | tags | weights file needs its tag |\n"
    "|---|---|---|---|---|---|---|---|"
)
XLM_R = {
    "model_type": "xlm-roberta", "vocab_size": 250_002, "max_position_embeddings": 514, "pad_token_id": 1,
    "type_vocab_size": 1, "layer_norm_eps": 1e-5, "hidden_act": "gelu",
}  # fmt: skip
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MT5 = {
    "model_type": "mt5", "vocab_size": 250_112, "pad_token_id": 0, "d_kv": 64, "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
NLLB = {"model_type": "m2m_100", "vocab_size": 256_206, "pad_token_id": 1, "d_model": 1024,
        "encoder_attention_heads": 16, "activation_function": "relu", "max_position_embeddings": 1024,
        "scale_embedding": True}  # fmt: skip
SIZES_OF = {
    "roberta-base": {**XLM_R, **BASE, "model_type": "roberta", "vocab_size": 50_265},
    "xlm-roberta-base": {**XLM_R, **BASE},
    "xlm-roberta-large": {**XLM_R, **LARGE},
    "google/mt5-base": {**MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-xl": {**MT5, "d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "facebook/nllb-200-distilled-600M": {**NLLB, "encoder_layers": 12, "encoder_ffn_dim": 4096},
    "facebook/nllb-200-distilled-1.3B": {**NLLB, "encoder_layers": 24, "encoder_ffn_dim": 8192},
}
TOKENIZERS = {
    "nllb": "NLLB",
    "xlm-roberta": "XLM-R",
    "roberta": "RoBERTa",
    "google/mt5": "mT5",
    "facebook/xlm-v": "XLM-V",
    "bert-base-uncased": "BERT",
    "SigLIP2": "Gemma",
    "SigLIP": "T5",
}


@dataclass(frozen=True)
class Row:
    """One model."""

    name: str
    reason: str  # why it does not work; empty if it does
    parts: str  # which of Refiner's parts are on
    image: str
    patch: str
    tokenizer: str
    tags: list[str]
    needs_tag: bool

    def __str__(self) -> str:
        works = "yes" if not self.reason else f"no: {self.reason}"
        needs = "" if not self.tags else "yes" if self.needs_tag else "no"
        cells = (
            self.name,
            works,
            self.parts,
            self.image,
            self.patch,
            self.tokenizer,
            ", ".join(self.tags) or "none",
            needs,
        )
        return f"| {' | '.join(cells)} |"


def tokenizer_kind(text: dict[str, object]) -> str:
    """A tokenizer's family, from its name on the hub."""
    name = str(text.get("hf_tokenizer_name") or "")
    return next((kind for part, kind in TOKENIZERS.items() if part in name), name or "CLIP")


def describe(name: str) -> Row:
    """Build one model on the meta device."""
    config = contrastive_part(find_architecture(name).config)
    tower_name = config["text_cfg"].get("hf_model_name")
    if tower_name:
        text = {**config["text_cfg"], SIZES: SIZES_OF[tower_name]}
        config = {**config, "custom_text": True, "text_cfg": text}
    tags = open_clip.list_pretrained_tags_by_model(name)
    profiles = [tag_profile(name, tag).comparable() for tag in tags]
    size = config["vision_cfg"].get("image_size", 224)
    reason, parts, patch = "", "", ""
    try:
        with torch.device("meta"):
            tower = assemble(BackboneSpec(name, "none", config, preprocess_config(config, {})), None).visual
        patch = str(tower.patch_size)
        parts = "all" if tower.depth else "no adapters, no queries"
    except ConfigError as error:
        reason = error.message.replace(f" {name}", "")
    tokenizer = tokenizer_kind(config["text_cfg"])
    return Row(
        name, reason, parts, str(size), patch, tokenizer, tags, any(one != profiles[0] for one in profiles)
    )


def main() -> None:
    """Print the table and a summary."""
    rows = [describe(name) for name in open_clip.list_models()]
    reasons = collections.Counter(row.reason or "works" for row in rows)
    out = [f"# Models of open_clip {open_clip.__version__}", ""]
    out += [f"- {count}: {reason}" for reason, count in reasons.most_common()]
    sys.stdout.write("\n".join([*out, "", HEADER, *map(str, rows)]) + "\n")


if __name__ == "__main__":
    main()
