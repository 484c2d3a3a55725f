"""Small tokenizers of every type that open_clip's models use, built here from a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

WORDS = ["a", "photo", "of", "wet", "sliced", "red", "apple", "dog", "key", "faux", "leather"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
BYTE_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"  # how byte-pair encodings of bytes do


def unknown(token: str) -> dict[str, str]:
    return {"unk_token": token}


def unigram(special: list[str], unknown_id: int) -> Any:
    """SentencePiece's unigram model, as in T5, mT5 and XLM: every word begins with a space."""
    tokenizers = pytest.importorskip("tokenizers")
    pieces = [(name, 0.0) for name in special]
    pieces += [(SPACE + word, -1.0 - i / 100) for i, word in enumerate(WORDS)]
    pieces += [(letter, -9.0) for letter in [SPACE, *LETTERS]]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=unknown_id))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    return model


def byte_pairs(special: list[str], spaces: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-pair encoding that knows the words, behind each of ``spaces``."""
    vocabulary, merges = [*special, *filter(None, spaces), *LETTERS], []
    for start in spaces:  # the merges that come first win
        for word in WORDS:
            piece = start or word[0]
            for letter in word if start else word[1:]:
                merges.append((piece, letter))
                piece += letter
                vocabulary.append(piece)
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}
    return ids, list(dict.fromkeys(merges))


def gemma() -> Any:
    """Gemma's byte-pair encoding, as in SigLIP2: a word has a space before it only inside a text."""
    tokenizers = pytest.importorskip("tokenizers")
    ids, merges = byte_pairs(["<pad>", "<eos>", "<bos>", "<unk>"], [SPACE, ""])
    model = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, **unknown("<unk>"), fuse_unk=True))
    model.normalizer = tokenizers.normalizers.Replace(" ", SPACE)
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    return model


def roberta() -> Any:
    """RoBERTa's byte-pair encoding of bytes: a word has a space before it only inside a text."""
    tokenizers = pytest.importorskip("tokenizers")
    ids, merges = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], [BYTE_SPACE, ""])
    model = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, **unknown("<unk>")))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return model


def build_nllb(folder: Path) -> int:
    """Write NLLB's tokenizer, which marks the language of a text; returns the vocabulary's size."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ids, merges = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], [SPACE])
    tokenizer = transformers.NllbTokenizer(
        vocab=ids, merges=merges, additional_special_tokens=["eng_Latn", "deu_Latn"]
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def bert() -> Any:
    """BERT's word pieces, as in CLIPA."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(names))}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, **unknown("[UNK]")))
    model.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return model


# kind -> the model, the template of a text, and open_clip's settings of a text tower that uses it
KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "t5": (
        lambda: unigram(["<pad>", "</s>", "<unk>"], 2),
        "$A </s>",
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last",
         "tokenizer_kwargs": {"clean": "canonicalize"}},
    ),
    "gemma": (
        gemma,
        "$A <eos>",
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last",
         "tokenizer_kwargs": {"clean": "canonicalize"}},
    ),
    "mt5": (
        lambda: unigram(["<pad>", "</s>", "<unk>"], 2),
        "$A </s>",
        {"pool_type": "eos", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}},
    ),
    "xlm": (
        lambda: unigram(["<s>", "<pad>", "</s>", "<unk>"], 3),
        "<s> $A </s>",
        {"pool_type": "eos", "eos_id": 2},
    ),
    "roberta": (roberta, "<s> $A </s>", {"pool_type": "eos", "eos_id": 2}),
    "bert": (
        bert,
        "[CLS] $A [SEP]",
        {"no_causal_mask": True, "pool_type": "last", "tokenizer_kwargs": {"strip_sep_token": True}},
    ),
}  # fmt: skip


def build_tokenizer(kind: str, folder: Path) -> tuple[dict[str, Any], int]:
    """Write a tokenizer into a folder; returns the settings of its text tower and the vocabulary's size."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers.processors import TemplateProcessing

    build, template, settings = KINDS[kind]
    model = build()
    names = [part for part in template.split() if part != "$A"]
    model.post_processor = TemplateProcessing(
        template, None, [(name, model.token_to_id(name)) for name in names]
    )
    special = {"eos_token": names[-1], "pad_token": "[PAD]" if kind == "bert" else "<pad>"}
    if kind == "bert":
        special |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, padding_side="right", **special)
    fast.save_pretrained(folder)
    return settings, len(fast)
