"""Export: one folder with weights, configuration, a model card and checksums, whole or not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refiner_cli.core.model_io.card import CardFacts, model_card
from refiner_cli.core.model_io.checkpoint import WEIGHTS_FILE, ModelInfo, write_model
from refiner_cli.core.model_io.checksums import write_checksums
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import PRECISIONS
from refiner_cli.errors import UsageError
from refiner_cli.files import atomic_folder, sha256

CARD_FILE = "README.md"


def export_model(
    folder: Path,
    model: Model,
    info: ModelInfo,
    *,
    dtype: str,
    with_backbone: bool,
    facts: CardFacts = CardFacts(),  # noqa: B008 - it is frozen
) -> int:
    """Write ``folder``, which must not exist.

    Args:
        dtype: "fp32", "fp16" or "bf16".
        with_backbone: whether the folder needs nothing else, or names the backbone and its fingerprint only.
        facts: for the card.

    Returns:
        Bytes written.
    """
    require_absent(folder)
    with atomic_folder(folder) as part:
        write_model(part, model, info, with_backbone=with_backbone, dtype=PRECISIONS[dtype])
        saver = model.backbone.text.tokens.save
        if with_backbone and saver is not None:
            saver(str(part / "tokenizer"))
        included = "is included" if with_backbone else "is not included: it is loaded by name and compared"
        facts = replace(
            facts,
            weights=f"The weights are stored as {dtype}; the backbone {included}.",
            hashes={WEIGHTS_FILE: sha256(part / WEIGHTS_FILE)},
        )
        write_card(part, model, info, facts)
    return size_of(folder)


def write_card(folder: Path, model: Model, info: ModelInfo, facts: CardFacts) -> None:
    """Write the card, and then the checksums of everything in the folder."""
    (folder / CARD_FILE).write_text(model_card(model, info, facts), "utf-8", "backslashreplace")
    write_checksums(folder)


def require_absent(folder: Path) -> None:
    """Raise UsageError if something has the name of the folder to make."""
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists already.", hint="Choose a folder that does not exist yet.")


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
