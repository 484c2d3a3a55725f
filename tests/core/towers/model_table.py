"""The table of open_clip's models: which work, how they are read, and why the others do not.

By hand: ``python -m tests.core.towers.model_table > models.md``. Models are built without memory for
their weights and nothing is downloaded, so the table takes a minute or two.
"""

from __future__ import annotations

import collections
import sys
from dataclasses import dataclass

import open_clip
import torch

from refiner_cli.core.towers.architectures import contrastive_part, find_architecture, preprocess_config
from refiner_cli.core.towers.backbone import BackboneSpec, assemble
from refiner_cli.core.towers.weights_profile import tag_profile
from refiner_cli.errors import ConfigError

HEADER = (
    "| model | works | parts | image | patch | tokenizer | tags | weights file needs its tag |\n"
    "|---|---|---|---|---|---|---|---|"
)
TOKENIZERS = {
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
    tags = open_clip.list_pretrained_tags_by_model(name)
    profiles = [tag_profile(open_clip.get_pretrained_cfg(name, tag)).comparable() for tag in tags]
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
