"""Fine-grained visual refinement: learnable queries read the patches and pick up regional semantics.

The queries pass through the last blocks of CLIP's own image tower as if each were another class token:
they attend to each other and to all tokens of the image and end in the joint space, where CLIP has
already aligned what its blocks read with words. Newly initialised decoder blocks know no word at
first, and learned too little in the time that prompts and adapters need. The class token and the
patches do not attend to the queries.

The composition read-out has no learned projection: a learned map behind the joint space fits the seen
pairs and misleads the unseen ones.

Shapes: ``B`` images, ``N`` visual tokens, ``L`` patches, ``K`` queries, ``W`` visual width, ``D`` joint
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.models.adapters import BlockAdapter
from refiner_cli.core.models.base import ImageVectors
from refiner_cli.core.models.prompts import ROLES
from refiner_cli.core.towers.image import ImageTower, ParallelAdapter, run_blocks

QUERY_STD = 0.5  # standard deviation of the queries around the class token


class AttentionPool(nn.Module):
    """Attention-pool the queries into one joint-space vector.

    Args:
        joint: D.
        project: whether a learned projection follows, which starts as the identity.
    """

    def __init__(self, joint: int, *, project: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(joint)
        self.probe = nn.Parameter(torch.randn(joint) * joint**-0.5)
        self.project = nn.Linear(joint, joint) if project else nn.Identity()
        if isinstance(self.project, nn.Linear):
            nn.init.eye_(self.project.weight)
            nn.init.zeros_(self.project.bias)

    def forward(self, queries: Tensor) -> Tensor:
        """Unit vectors ``B x K x D`` -> unit vectors ``B x D``."""
        weights = (self.norm(queries) @ self.probe).softmax(-1)  # B x K
        return F.normalize(self.project((weights[..., None] * queries).sum(1)).float(), dim=-1)


@dataclass(frozen=True)
class RoutedAdapter:
    """The adapters of a block whose first ``count`` tokens are queries with adapters of their own."""

    count: int
    queries: ParallelAdapter
    others: ParallelAdapter

    def attention(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.count], x[:, self.count :]
        return torch.cat([self.queries.attention(first), self.others.attention(rest)], 1)

    def mlp(self, x: Tensor) -> Tensor:
        first, rest = x[:, : self.count], x[:, self.count :]
        return torch.cat([self.queries.mlp(first), self.others.mlp(rest)], 1)


class NullAdapter:
    """Stands for the adapters of a block that has none."""

    attention = mlp = staticmethod(torch.zeros_like)


class VisualRefinement(nn.Module):
    """K queries, their adapters in the tower's last blocks, and a read-out per role.

    Args:
        num_queries: K.
        blocks: how many of the tower's last blocks the queries pass through.
        width: W.
        adapter_dim: r, the adapters' inner width.
        joint: D.
    """

    def __init__(self, *, num_queries: int, blocks: int, width: int, adapter_dim: int, joint: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, width) * QUERY_STD)
        self.adapters = nn.ModuleList([BlockAdapter(width, adapter_dim) for _ in range(blocks)])
        self.pools = nn.ModuleDict(
            {role: AttentionPool(joint, project=role != "composition") for role in ROLES}
        )

    @property
    def num_queries(self) -> int:
        return len(self.queries)

    def run_with_queries(
        self,
        tower: ImageTower,
        x: Tensor,
        until: int,
        adapters: Sequence[ParallelAdapter],
        *,
        rows: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Tokens ``B x N x W`` and the queries through the query blocks below ``until``.

        The queries start around the class token.

        Args:
            adapters: those of the other tokens, in the tower's last blocks.
            rows: how many of the other tokens are needed after the tower's last block; None: all.

        Returns:
            The other tokens, ``B x N x W`` (after the last block ``B x rows x W``), and the queries,
            ``B x K x W``.
        """
        K = self.num_queries
        start = x[:, :1] if tower.num_prefix_tokens else x.mean(1, keepdim=True)  # B x 1 x W
        x = torch.cat([start + self.queries, x], 1)  # B x (K + N) x W
        mask = torch.zeros(x.shape[1], x.shape[1], device=x.device, dtype=x.dtype)
        mask[K:, :K] = -torch.inf
        first, first_adapted = tower.depth - len(self.adapters), tower.depth - len(adapters)
        routed = [
            RoutedAdapter(
                K,
                cast("BlockAdapter", own),
                adapters[block - first_adapted] if block >= first_adapted else NullAdapter(),
            )
            for block, own in enumerate(self.adapters, first)
        ]
        x = run_blocks(
            tower,
            x,
            range(first, until),
            routed,
            rows=None if rows is None else K + rows,
            mask=mask,
            gradient_checkpointing=gradient_checkpointing,
        )
        return x[:, K:], x[:, :K]

    def forward(self, tower: ImageTower, queries: Tensor) -> ImageVectors:
        """Queries after the last block ``B x K x W`` -> a unit vector per role, ``B x D``."""
        _, tokens = tower.pool_and_project(queries)
        joint = F.normalize(tower.project_tokens(tokens), dim=-1)  # B x K x D
        composition, state, obj = (self.pools[role](joint) for role in ROLES)
        return ImageVectors(composition, state, obj)

    @torch.no_grad()
    def attention_weights(self, tower: ImageTower, x: Tensor, adapters: Sequence[ParallelAdapter]) -> Tensor:
        """How much each query attends to each patch in the last block, ``B x K x L``; rows sum to 1."""
        last = tower.depth - 1
        others, queries = self.run_with_queries(tower, x, last, adapters)
        weights = tower.attention_weights(last, torch.cat([queries, others], 1))
        weights = weights[:, : self.num_queries, self.num_queries + tower.num_prefix_tokens :]
        return weights / weights.sum(-1, keepdim=True)
