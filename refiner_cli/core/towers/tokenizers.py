"""Tokenizers: what one puts around a text, and how it splits one.

CLIP's own tokenizer comes with open_clip; SigLIP, CLIPA and the multilingual models need the transformers
library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from refiner_cli.core.towers.hub_access import failure, hub_access
from refiner_cli.core.towers.library_messages import first_line
from refiner_cli.core.towers.transformers_config import INSTALL
from refiner_cli.errors import ConfigError, EnvironmentLacksError, FetchError, ModelFileError

PROBE = "apple"  # every tokenizer knows how to split it
OPTIONS = {"clean", "strip_sep_token"}  # of HFTokenizer that a model configuration may set
# At least one of these is in a folder with a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
)


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer, taken apart."""

    encode: Callable[[str], list[int]]  # the beginning of a text -> ids without special tokens
    encode_inside: Callable[[str], list[int]]  # words that follow others -> ids
    prefix_ids: tuple[int, ...]  # before the text; none in SigLIP's and mT5's tokenizers
    eos_id: int  # right after the text
    pad_id: int  # up to the context length
    save: Callable[[str], object] | None = None  # writes the tokenizer to a folder, if it is not CLIP's

    def ids(self, text: str) -> list[int]:
        """A complete text, without padding."""
        return [*self.prefix_ids, *self.encode(text), self.eos_id]


def clip_tokenizer(context_length: int, vocabulary: int) -> PromptTokenizer:
    """CLIP's tokenizer; ids beyond a smaller vocabulary (of random weights) are folded into it."""
    tokenizer = open_clip.SimpleTokenizer(context_length=context_length)

    def encode(text: str) -> list[int]:
        return [i % vocabulary for i in tokenizer.encode(text)]

    sot, eot = tokenizer.sot_token_id % vocabulary, tokenizer.eot_token_id % vocabulary
    return PromptTokenizer(encode, encode, (sot,), eot, 0)


def transformers_tokenizer(
    source: str | Path, text_config: dict[str, Any], context_length: int
) -> PromptTokenizer:
    """A tokenizer of the transformers library.

    Args:
        source: a name on the Hugging Face hub, or a folder, which is read without the network.
        text_config: open_clip's configuration of the text tower.

    Raises:
        EnvironmentLacksError: transformers is not installed.
        FetchError: the tokenizer cannot be downloaded.
        ModelFileError: the folder holds no tokenizer that can be read.
        ConfigError: the tokenizer works in a way that is not supported.
    """
    if text_config.get("tokenizer_mode"):
        raise ConfigError(f"The tokenizer mode {text_config['tokenizer_mode']!r} is not supported.")
    is_folder = isinstance(source, Path)
    if isinstance(source, Path) and not any((source / file).is_file() for file in TOKENIZER_FILES):
        raise ModelFileError(f"{source} holds no tokenizer, and the model needs one of its own.")
    stated = text_config.get("tokenizer_kwargs") or {}
    options = {key: value for key, value in stated.items() if key in OPTIONS}
    with hub_access() as host:
        try:
            tokenizer = open_clip.tokenizer.HFTokenizer(
                str(source),
                context_length=context_length,
                trust_remote_code=False,
                local_files_only=is_folder,
                **options,
            )
        except ImportError as error:
            raise EnvironmentLacksError(
                f"The model's tokenizer needs the package transformers ({first_line(error)}).", hint=INSTALL
            ) from None
        except Exception as error:  # noqa: BLE001 - the hub's client and damaged files raise dozens of kinds
            why = first_line(error) if is_folder else failure(error, host)
            if is_folder:
                raise ModelFileError(f"The tokenizer {source} cannot be read ({why}).") from None
            raise FetchError(f"The tokenizer {source} cannot be downloaded ({why}).") from None
    if stated.get("language"):
        set_language(tokenizer.tokenizer, stated["language"])
    return take_apart(tokenizer, context_length)


def set_language(tokenizer: Any, language: str) -> None:
    """Let a tokenizer mark texts with a language. Raises ConfigError if it does not know the language.

    open_clip's way is undone by transformers 5 at the next text.
    """
    if not hasattr(tokenizer, "src_lang"):
        raise ConfigError(f"The backbone's tokenizer does not mark languages, so {language!r} cannot be set.")
    if tokenizer.convert_tokens_to_ids(language) in {None, tokenizer.unk_token_id}:
        raise ConfigError(
            f"The backbone's tokenizer does not know the language {language!r}.",
            hint="NLLB names languages by code and script, such as eng_Latn, deu_Latn or zho_Hans.",
        )
    tokenizer.src_lang = language


def take_apart(tokenizer: Any, context_length: int) -> PromptTokenizer:
    """Find prefix, end and padding by looking at how open_clip's ``HFTokenizer`` wraps one word."""

    def encode(text: str) -> list[int]:
        cleaned = tokenizer.clean_fn(text)
        return list(tokenizer.tokenizer(cleaned, add_special_tokens=False)["input_ids"])

    def encode_inside(words: str) -> list[int]:
        # Gemma's tokenizer (SigLIP2) marks a leading space only between words.
        first, both = encode(PROBE), encode(f"{PROBE} {words}")
        return both[len(first) :] if both[: len(first)] == first else encode(words)

    ids = tokenizer([PROBE], context_length=context_length)[0].tolist()
    word = encode(PROBE)
    start = next((i for i in range(len(ids)) if ids[i : i + len(word)] == word), None)
    if not word or start is None or start + len(word) >= len(ids):
        raise ConfigError(f"The tokenizer changes or cuts the word {PROBE!r}, which is not supported.")
    tail = ids[start + len(word) :]
    return PromptTokenizer(
        encode, encode_inside, tuple(ids[:start]), tail[0], tail[-1], tokenizer.save_pretrained
    )
