"""Fine-grained refinement: concept queries read the patches and pick up regional semantics.

The queries go through the last blocks of CLIP's own image tower as if each were another class token:
they talk to each other, read all tokens of the picture and end in the joint space, where CLIP
already aligned what its blocks read with words. Decoder blocks that start from nothing know no word
at first, and learned too little in the time that prompts and adapters need. Class token and patches
do not see the queries.

For the composition the concepts speak as they are. A learned map after the joint space fits the seen
pairs and leads the unseen ones astray.

Shapes: ``B`` images, ``N`` visual tokens, ``K`` queries, ``W`` visual width, ``D`` joint width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.models.adapters import BlockAdapter
from refiner_cli.core.models.prompts import ROLES, Role
from refiner_cli.core.towers.image import Beside, Tower, run

SPREAD = 0.5  # standard deviation of the queries around the class token


class ReadOut(nn.Module):
    """Attention-pool the concepts into one joint-space vector.

    Args:
        joint: D.
        direct: the pooled vector as it is, without a learned projection.
    """

    def __init__(self, joint: int, *, direct: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(joint)
        self.probe = nn.Parameter(torch.randn(joint) * joint**-0.5)
        self.project = nn.Identity() if direct else nn.Linear(joint, joint)
        if isinstance(self.project, nn.Linear):
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, concepts: Tensor) -> Tensor:
        """Unit vectors ``B x K x D`` -> unit vectors ``B x D``."""
        share = (self.norm(concepts) @ self.probe).softmax(-1)  # B x K
        return F.normalize(self.project((share[..., None] * concepts).sum(1)).float(), dim=-1)


@dataclass(frozen=True)
class Joined:
    """The adapters of a block where the first ``count`` tokens are queries and have their own."""

    count: int
    queries: Beside
    others: Beside

    def attention(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.count], x[:, self.count :]
        return torch.cat([self.queries.attention(first), self.others.attention(rest)], 1)

    def mlp(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.count], x[:, self.count :]
        return torch.cat([self.queries.mlp(first), self.others.mlp(rest)], 1)


class Nothing:
    """Beside a block that carries no adapter."""

    attention = mlp = staticmethod(torch.zeros_like)


class Concepts(nn.Module):
    """K concept queries and their three read-outs.

    Args:
        queries: K.
        blocks: how many of the tower's last blocks they go through, each with adapters of their own.
        width: W.
        inner: r, the adapters' inner width.
        joint: D.
    """

    def __init__(self, *, queries: int, blocks: int, width: int, inner: int, joint: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * SPREAD)
        self.adapters = nn.ModuleList([BlockAdapter(width, inner) for _ in range(blocks)])
        self.read_outs = nn.ModuleDict({role: ReadOut(joint, direct=role == "composition") for role in ROLES})

    def __len__(self) -> int:
        return len(self.queries)

    def join(
        self,
        tower: Tower,
        x: Tensor,
        until: int,
        beside: Sequence[Beside],
        *,
        rows: int | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Tokens ``B x N x W`` and the queries in front of them, through the blocks below ``until``.

        The queries start around the class token.

        Args:
            beside: the adapters of the other tokens in the tower's last blocks.
            rows: how many of the other tokens are needed after the tower's last block; None: all.

        Returns:
            ``B x (K + N) x W``; after the last block ``B x (K + rows) x W``.
        """
        K = len(self)
        start = x[:, :1] if tower.prefix else x.mean(1, keepdim=True)
        x = torch.cat([start + self.queries, x], 1)
        mask = torch.zeros(x.shape[1], x.shape[1], device=x.device, dtype=x.dtype)
        mask[K:, :K] = -torch.inf
        joined = []
        for i, own in enumerate(self.adapters, tower.depth - len(self.adapters)):
            at = i - (tower.depth - len(beside))
            joined.append(Joined(K, cast("BlockAdapter", own), beside[at] if at >= 0 else Nothing()))
        blocks = range(tower.depth - len(joined), until)
        wanted = None if rows is None else K + rows
        return run(tower, x, blocks, joined, rows=wanted, mask=mask, recompute=recompute)

    def forward(self, tower: Tower, found: Tensor) -> dict[Role, Tensor]:
        """Queries after the last block ``B x K x W`` -> what they say, a unit vector a role, ``B x D``."""
        _, read = tower.finish(found)
        concepts = F.normalize(tower.project(read), dim=-1)  # B x K x D
        return {role: self.read_outs[role](concepts) for role in ROLES}

    @torch.no_grad()
    def attention(self, tower: Tower, x: Tensor, beside: Sequence[Beside]) -> Tensor:
        """What each query looks at in the last block, ``B x K x L`` over the patches; rows sum to 1."""
        last = tower.depth - 1
        weights = tower.attention(last, self.join(tower, x, last, beside))
        weights = weights[:, : len(self), len(self) + tower.prefix :]
        return weights / weights.sum(-1, keepdim=True)
