"""What to search for: terms of a query, and their text vectors.

A query is a list of terms: ``"rusty bike"`` (a composition), ``state:rusty``, ``object:bike``, or free
words that are neither a known state nor a known object. Terms are added; one that begins with ``-`` is
subtracted.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.models.base import Model, TextBank
from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.towers.text import label_to_text
from refiner_cli.data.images import decode
from refiner_cli.data.labels import LabelSpace
from refiner_cli.errors import UsageError
from refiner_cli.inference.recogniser import Recogniser

Kind = Literal["pair", "state", "object", "text"]
DEFAULT_PROMPT = "a photo of"


@dataclass(frozen=True)
class Term:
    """One term of a query."""

    kind: Kind
    state: str  # of a pair or a state; of a text all its words
    object: str = ""
    sign: int = 1  # -1: excluded

    def __str__(self) -> str:
        name = {"pair": f"{self.state} {self.object}", "state": f"state:{self.state}",
                "object": f"object:{self.object}", "text": self.state}[self.kind]  # fmt: skip
        return f"-{name}" if self.sign < 0 else name


def parse_query(words: Sequence[str], space: LabelSpace) -> list[Term]:
    """The terms of a query, given as the words of a command line.

    Words that follow each other form one phrase. A phrase of two or more words is a composition, its last
    word (or the longest known object at its end) the object. A single word is what it is known as: an
    object, a state, or free text.

    Raises:
        UsageError: there is no term, every term is excluded, or a term is empty.
    """
    terms: list[Term] = []
    phrase: list[str] = []  # words of the term that is being read
    sign = 1  # of the next term

    def finish(term: Term | None = None) -> None:
        """End the phrase that is being read, and add ``term`` behind it."""
        nonlocal sign
        if phrase:
            terms.append(phrase_term(phrase, space, sign))
            phrase.clear()
            sign = 1
        if term is not None:
            terms.append(replace(term, sign=sign))
            sign = 1

    for text in (token for word in words for token in split(word)):
        excluded, marked = text.startswith("-"), text[:1] in {"+", "-"}
        if marked:
            finish()
            sign = -1 if excluded else 1
        token = text[1:] if marked else text
        name, colon, value = token.partition(":")
        if not token:
            continue
        if colon and name in {"state", "object"}:
            if not value.strip():
                raise UsageError(f"The term {token!r} has no name after the colon.")
            known = known_spelling(value, space.states if name == "state" else space.objects)
            finish(Term("state", known) if name == "state" else Term("object", "", known))
        elif " " in token.strip():  # quoted: a phrase of its own
            finish(phrase_term(token.split(), space, 1))
        else:
            phrase.append(token)
    finish()
    if not terms:
        raise UsageError("The query is empty.", hint="Name a composition such as 'rusty bike'.")
    if all(term.sign < 0 for term in terms):
        raise UsageError("The query only excludes.", hint="Add at least one term that images must match.")
    return terms


def split(word: str) -> list[str]:
    """Tokens of one argument. Quotes inside it keep words together."""
    try:
        return shlex.split(word)
    except ValueError:
        raise UsageError(f"The query {word!r} has an unmatched quote.") from None


def phrase_term(words: Sequence[str], space: LabelSpace, sign: int) -> Term:
    """The term that some words form. Raises UsageError if there is no letter or digit in them."""
    if not any(character.isalnum() for word in words for character in word):
        raise UsageError(f"The query {' '.join(words)!r} holds no word.", hint="Name a state and an object.")
    if len(words) == 1:
        known_object = known_spelling(words[0], space.objects)
        if known_object in space.objects:
            return Term("object", "", known_object, sign)
        known_state = known_spelling(words[0], space.states)
        if known_state in space.states:
            return Term("state", known_state, sign=sign)
        return Term("text", words[0], sign=sign)
    splits = [
        (
            known_spelling(" ".join(words[:i]), space.states),
            known_spelling(" ".join(words[i:]), space.objects),
        )
        for i in range(1, len(words))
    ]
    best = max(
        splits, key=lambda pair: ((pair[0] in space.states) + (pair[1] in space.objects), len(pair[0]))
    )
    return Term("pair", *best, sign=sign)


def known_spelling(name: str, labels: Sequence[str]) -> str:
    """The label that a name means, whatever its case, spaces, ``_`` or ``.``; else the name itself."""
    text = label_to_text(name.strip())
    return next((label for label in labels if label_to_text(label) == text), name.strip())


def unknown_names(terms: Sequence[Term], space: LabelSpace) -> list[str]:
    """The names in a query that the model was not trained with, as they were given."""
    named = [
        name
        for term in terms
        for name, known in ((term.state, space.states), (term.object, space.objects))
        if name and name not in known
    ]
    return list(dict.fromkeys(named))


@dataclass(frozen=True)
class QueryVectors:
    """Text vectors of a query's terms and which image vectors they are compared with."""

    terms: tuple[Term, ...]
    roles: tuple[Literal["composition", "state", "object"], ...]
    texts: Tensor  # T x D, unit vectors
    signs: Tensor  # T, 1 or -1


@torch.no_grad()
def encode_query(model: Model, terms: Sequence[Term]) -> QueryVectors:
    """The text vectors of some terms, with the model's own prompts where it has them."""
    roles: list[Literal["composition", "state", "object"]] = []
    texts = []
    for term in terms:
        role, vector = encode_term(model, term)
        roles.append(role)
        texts.append(vector)
    signs = to_device(torch.tensor([float(term.sign) for term in terms]), texts[0].device)
    return QueryVectors(tuple(terms), tuple(roles), torch.stack(texts), signs)


def encode_term(model: Model, term: Term) -> tuple[Literal["composition", "state", "object"], Tensor]:
    """The role and the text vector of a term, ``D``.

    A state or an object alone has the model's own prompt if it was trained with one; any other term is
    compared with the composition vectors.
    """
    if term.kind == "pair":
        return "composition", encode_labels(model, term.state, term.object).pairs[0]
    if term.kind == "state" and model.has_state_branch:
        states = encode_labels(model, term.state, model.space.objects[0]).states
        assert states is not None  # noqa: S101 - has_state_branch says so
        return "state", states[0]
    if term.kind == "object" and model.has_object_branch:
        objects = encode_labels(model, model.space.states[0], term.object).objects
        assert objects is not None  # noqa: S101 - has_object_branch says so
        return "object", objects[0]
    prompt = getattr(model.config, "prompt_init", DEFAULT_PROMPT)
    vector = model.backbone.text.encode_texts([f"{prompt} {label_to_text(term.state or term.object)}"])[0]
    return "composition", F.normalize(vector, dim=-1)


@torch.no_grad()
def encode_like(recogniser: Recogniser, file: Path) -> QueryVectors:
    """An image as the query: its composition vector. Raises DatasetError if it cannot be read."""
    pixels = recogniser.preprocess(decode(file))[None]
    vector = recogniser.encode(pixels).composition.float()
    one = torch.ones(1, device=vector.device)
    return QueryVectors((Term("text", str(file)),), ("composition",), vector, one)


def encode_labels(model: Model, state: str, obj: str) -> TextBank:
    """The text vectors of one pair, and of its state and object where the model has them."""
    return model.encode_pairs(LabelSpace((state,), (obj,), ((state, obj),), frozenset()))
