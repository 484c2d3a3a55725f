"""The files of this machine that a backbone is made of, and a digest of them: nothing is loaded or fetched.

A name stands for weights only as long as its files stay as they are. Stored results keep the digest, so that
those of other weights are not taken for their own.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.architectures import CONFIG_FILE, LOCAL_DIR, split_language
from refiner_cli.core.towers.sidecar import MODEL_CONFIG, PREPROCESSOR_CONFIG
from refiner_cli.core.towers.weights import BUILT_IN, CONFIG_DEFAULT, OWN, RANDOM_WEIGHTS, find_weights_file
from refiner_cli.files import sha256


def local_weights(name: str, pretrained: str) -> Path | None:
    """The weights file that both name, as :func:`find_weights` finds it.

    None where a tag or a repository names the weights, or the file is missing. Raises ConfigError if a folder
    holds no weights file, or leaves open which.
    """
    bare, _ = split_language(name)
    if pretrained == RANDOM_WEIGHTS:
        return None
    if Path(pretrained).is_file():
        return Path(pretrained)
    if bare == tiny.NAME and pretrained in {"", BUILT_IN, CONFIG_DEFAULT}:
        return tiny.weights_path()
    if bare.startswith(LOCAL_DIR) and pretrained in {"", OWN, CONFIG_DEFAULT}:
        return find_weights_file(Path(bare.removeprefix(LOCAL_DIR)))
    file = Path(pretrained.partition("=")[2])
    return file if file.is_file() else None


def local_files(name: str, pretrained: str) -> list[Path]:
    """The weights file, and the configurations and tokenizer that decide how it is used; may be empty."""
    bare, _ = split_language(name)
    found = set[Path]()
    if bare.startswith(LOCAL_DIR):
        found |= set(Path(bare.removeprefix(LOCAL_DIR)).glob("*.json"))
    elif bare.endswith(".json"):
        found.add(Path(bare))
    weights = local_weights(name, pretrained)
    if weights is not None:
        beside = (CONFIG_FILE, MODEL_CONFIG, PREPROCESSOR_CONFIG)
        found |= {weights, *(weights.with_name(file) for file in beside)}
    return sorted(file for file in found if file.is_file())


def local_digest(name: str, pretrained: str) -> str:
    """16 hex digits over these files, wherever they lie; what a tag names is told by the tag.

    Raises OSError if a file cannot be read, and what :func:`local_weights` raises.
    """
    digest = hashlib.sha256()
    for file in local_files(name, pretrained):
        facts = file.stat()
        digest.update(_content(file.resolve(), facts.st_ino, facts.st_size, facts.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


@lru_cache
def _content(file: Path, *_facts: int) -> str:
    """Of a file that has not changed since it was read before, by its inode, size and time."""
    return sha256(file)
