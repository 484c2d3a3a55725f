"""Learnable prompts: three contexts, and one shared table of state and object vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.config import ModelConfig
from refiner_cli.core.towers.text import TextTower
from refiner_cli.data.labels import LabelSpace

Role = Literal["composition", "state", "object"]
ROLES: tuple[Role, ...] = ("composition", "state", "object")


class Prompts(nn.Module):
    """What the text tower reads.

    The vectors start as the mean of the name's CLIP token embeddings, the contexts as the token
    embeddings of ``context``. A word that was not trained keeps CLIP's own embedding, so that any
    vocabulary can be put into the learned prompts.

    Args:
        text: the frozen text tower.
        states: S names that get a trained vector; ``objects``: O names.
        context: words such as "a photo of", n tokens.
        dropout: share of a vector's entries that is dropped in training.
        share: how far trained vectors count outside training, on the way from CLIP's own (0) to
            themselves (1). They serve the seen pairs first; on the way back unseen ones gain, as whole
            networks do (Wortsman et al., CVPR 2022).
        roles: which contexts there are.
    """

    own_states: Tensor
    own_objects: Tensor

    def __init__(
        self,
        text: TextTower,
        states: Sequence[str],
        objects: Sequence[str],
        *,
        context: str,
        dropout: float,
        share: float = 1.0,
        roles: Sequence[Role] = ROLES,
    ) -> None:
        super().__init__()
        self.text = text
        self.dropout, self.share = dropout, share
        self.index = {
            "state": {name: i for i, name in enumerate(states)},
            "object": {name: i for i, name in enumerate(objects)},
        }
        start = text.context(context)  # n x E
        self.contexts = nn.ParameterDict({role: nn.Parameter(start.clone()) for role in roles})
        self.states = nn.Parameter(torch.stack([text.word(name) for name in states]))  # S x E
        self.objects = nn.Parameter(torch.stack([text.word(name) for name in objects]))  # O x E
        self.register_buffer("own_states", self.states.detach().clone(), persistent=False)
        self.register_buffer("own_objects", self.objects.detach().clone(), persistent=False)

    @classmethod
    def build(cls, text: TextTower, config: ModelConfig, space: LabelSpace, *, share: float = 1.0) -> Prompts:
        """All three contexts and both tables, trained where ``config`` says so."""
        made = cls(
            text,
            space.states,
            space.objects,
            context=config.context,
            dropout=config.word_dropout,
            share=share,
        )
        made.contexts.requires_grad_(config.learn_context)
        made.states.requires_grad_(config.learn_words)
        made.objects.requires_grad_(config.learn_words)
        return made

    def words(self, role: Literal["state", "object"], names: Sequence[str]) -> Tensor:
        """The vectors of ``names`` in their role, ``len(names) x E``: learned where known, else CLIP's."""
        table: Tensor = self.states if role == "state" else self.objects
        if not self.training and self.share < 1:
            table = torch.lerp(self.own_states if role == "state" else self.own_objects, table, self.share)
        index = self.index[role]
        unknown = [name for name in names if name not in index]
        if unknown:
            fresh = torch.stack([self.text.word(name) for name in unknown]).to(table)
            table = torch.cat([table, fresh])
            index = index | {name: len(index) + i for i, name in enumerate(unknown)}
        rows = table[torch.tensor([index[name] for name in names], device=table.device)]
        return F.dropout(rows, self.dropout, self.training)
