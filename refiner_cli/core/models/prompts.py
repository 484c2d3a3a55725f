"""Learnable prompts: one context per role, and one shared table of state and object vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.models.base import TextBank
from refiner_cli.core.runtime.device import to_device
from refiner_cli.core.towers.text import TextTower
from refiner_cli.data.labels import LabelSpace

Role = Literal["composition", "state", "object"]
ROLES: tuple[Role, ...] = ("composition", "state", "object")


class Prompts(nn.Module):
    """The inputs of the text tower.

    The label vectors start as the mean of the name's CLIP token embeddings, the contexts as the token
    embeddings of ``context``. A label that was not trained keeps CLIP's own embedding, so that any
    vocabulary can be put into the learned prompts.

    Args:
        text: the frozen text tower.
        space: its S states and O objects get a vector each.
        context: words such as "a photo of", n tokens.
        dropout: share of a vector's entries that is dropped in training.
        roles: which contexts there are.
        learn_context: whether the contexts are trained.
        learn_primitives: whether the state and object vectors are trained.
    """

    clip_states: Tensor
    clip_objects: Tensor

    def __init__(
        self,
        text: TextTower,
        space: LabelSpace,
        *,
        context: str,
        dropout: float,
        roles: Sequence[Role] = ROLES,
        learn_context: bool = True,
        learn_primitives: bool = True,
    ) -> None:
        super().__init__()
        self.text = text
        self.dropout = dropout
        self.index = {
            "state": {name: i for i, name in enumerate(space.states)},
            "object": {name: i for i, name in enumerate(space.objects)},
        }
        start = text.embed_context(context)  # n x E
        self.contexts = nn.ParameterDict({role: nn.Parameter(start.clone()) for role in roles})
        self.states = nn.Parameter(torch.stack([text.embed_label(name) for name in space.states]))  # S x E
        self.objects = nn.Parameter(torch.stack([text.embed_label(name) for name in space.objects]))  # O x E
        self.register_buffer("clip_states", self.states.detach().clone(), persistent=False)
        self.register_buffer("clip_objects", self.objects.detach().clone(), persistent=False)
        self.contexts.requires_grad_(learn_context)
        self.states.requires_grad_(learn_primitives)
        self.objects.requires_grad_(learn_primitives)

    def label_tables(self) -> dict[str, Literal["state", "object"]]:
        """The learned tensors with a row per label."""
        return {"states": "state", "objects": "object"}

    def embed(
        self, role: Literal["state", "object"], names: Sequence[str], wise_ft_alpha: float = 1.0
    ) -> Tensor:
        """The vectors of ``names`` in their role, ``len(names) x E``: trained where known, else CLIP's.

        Args:
            wise_ft_alpha: weight of the trained vectors at inference, interpolated with CLIP's own (0:
                CLIP's, 1: trained). Trained vectors fit the seen pairs first; interpolation helps unseen
                ones, as it does for whole networks (WiSE-FT, Wortsman et al., CVPR 2022).
        """
        table: Tensor = self.states if role == "state" else self.objects
        if not self.training and wise_ft_alpha < 1:
            own = self.clip_states if role == "state" else self.clip_objects
            table = torch.lerp(own, table, wise_ft_alpha)
        index = self.index[role]
        unknown = [name for name in names if name not in index]
        if unknown:
            new = torch.stack([self.text.embed_label(name) for name in unknown]).to(table)
            table = torch.cat([table, new])
            index = index | {name: len(index) + i for i, name in enumerate(unknown)}
        rows = table[to_device(torch.tensor([index[name] for name in names]), table.device)]
        return F.dropout(rows, self.dropout, self.training)

    def encode(
        self,
        space: LabelSpace,
        *,
        chunk_size: int,
        wise_ft_alpha: float = 1.0,
        with_states: bool = True,
        with_objects: bool = True,
    ) -> TextBank:
        """The text vectors of a label space.

        Args:
            chunk_size: prompts encoded at once.
            wise_ft_alpha: as in :meth:`embed`.
            with_states: whether the bank has vectors of the states alone; likewise ``with_objects``.
        """
        states = self.embed("state", space.states, wise_ft_alpha)
        objects = self.embed("object", space.objects, wise_ft_alpha)
        state, obj = (to_device(i, states.device) for i in (space.pair_state, space.pair_object))
        pairs = self.text.encode_pairs(
            self.contexts["composition"], states, objects[obj], state, chunk_size=chunk_size
        )

        def alone(role: Role, labels: Tensor) -> Tensor:
            return F.normalize(self.text.encode(self.contexts[role], labels, chunk_size=chunk_size), dim=-1)

        return TextBank(
            space,
            F.normalize(pairs, dim=-1),
            alone("state", states) if with_states else None,
            alone("object", objects) if with_objects else None,
        )
