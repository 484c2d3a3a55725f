"""Visual refinement: learnable queries of a role read the patches and refine the class token.

Each role (composition, state, object) has a group of queries. A query is a learned vector plus what the
image as a whole asks for, and attends over the patches. What it reads from a patch is what the last
block's attention reads there, without the residual stream: behind several blocks that stream carries the
same global content in every patch, and a mixture of whole tokens would say nothing of a region. The
read-out is added to the class token through a gate that starts at zero::

    v = normalise(class_token + gate * normalise(sum_l attention_l value_l))

No learned projection stands behind the joint space: one that does fits the seen pairs and misleads the
unseen ones (see the study's notes).

Shapes: ``B`` images, ``N`` visual tokens, ``L`` patches, ``k`` queries of a role, ``K`` of all roles, ``W``
visual width, ``D`` joint width, ``d`` width of queries and keys.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.models.adapters import Adapter
from refiner_cli.core.models.base import ImageVectors
from refiner_cli.core.models.prompts import ROLES
from refiner_cli.core.towers.image import ImageTower

QUERY_DIM = 64  # d
# Adam moves a parameter by about the learning rate a step: counted in this unit, a gate opens within some
# hundred steps at the small learning rates of large backbones too.
GATE_UNIT = 30.0
# Training shows seen pairs, which regions help most: unlimited, gates open to 0.7, where unseen pairs lose.
GATE_LIMIT = 0.5


class RoleQueries(nn.Module):
    """The queries of one role.

    Args:
        count: k.
        width: W.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Parameter(torch.randn(count, QUERY_DIM))
        self.from_image = nn.Linear(width, QUERY_DIM)
        # A bias would add the same to every patch of a query, which the softmax cancels.
        self.keys = nn.Linear(width, QUERY_DIM, bias=False)
        self.gate_logit = nn.Parameter(torch.zeros(()))

    @property
    def gate(self) -> Tensor:
        """How much of a region is added to the class token, between plus and minus ``GATE_LIMIT``."""
        return GATE_LIMIT * torch.tanh(GATE_UNIT * self.gate_logit)

    def attend(self, whole: Tensor, patches: Tensor) -> Tensor:
        """Where the queries look, ``B x k x L``; rows sum to 1.

        Args:
            whole: ``B x 1 x W``, the token that stands for the image.
            patches: ``B x L x W``.
        """
        queries = self.queries + self.from_image(self.norm(whole))  # B x k x d
        keys = self.keys(self.norm(patches))  # B x L x d
        return (queries @ keys.transpose(1, 2) * QUERY_DIM**-0.5).float().softmax(-1)

    def read(self, whole: Tensor, patches: Tensor, values: Tensor) -> Tensor:
        """What the group reads from values ``B x L x D``, unit vectors ``B x D``; the rest as above."""
        attention = self.attend(whole, patches).mean(1, keepdim=True)  # B x 1 x L
        return F.normalize((attention @ values).squeeze(1).float(), dim=-1)

    def refine(self, class_token: Tensor, region: Tensor) -> Tensor:
        """Unit vectors ``B x D``; the class token itself as long as the gate is closed."""
        return F.normalize(class_token + self.gate * region, dim=-1)


class VisualRefinement(nn.Module):
    """A group of queries per role, and the values that they read.

    Args:
        per_role: k, queries of each group.
        width: W.
        adapter_dim: r, inner width of the adapter beside the last block's values.
    """

    def __init__(self, per_role: int, width: int, adapter_dim: int) -> None:
        super().__init__()
        self.roles = nn.ModuleDict({role: RoleQueries(per_role, width) for role in ROLES})
        self.norm = nn.LayerNorm(width)
        self.adapter = Adapter(width, adapter_dim)

    def groups(self) -> list[RoleQueries]:
        """The groups of the roles, in their order."""
        return [cast("RoleQueries", self.roles[role]) for role in ROLES]

    def forward(self, tower: ImageTower, class_token: Tensor, tokens: Tensor) -> ImageVectors:
        """The refined class token of each role.

        Args:
            tower: the frozen tower that the tokens come from.
            class_token: ``B x D``, unit vectors.
            tokens: ``B x N x W``, before the tower's last block.

        Returns:
            Unit vectors; their branch is what the queries read, without the class token.
        """
        whole, patches = split_tokens(tower, tokens)
        values = self.values(tower, tokens)  # B x L x D
        composition, state, obj = (group.read(whole, patches, values) for group in self.groups())  # B x D
        regions = ImageVectors(composition, state, obj)
        composition, state, obj = (
            group.refine(class_token, getattr(regions, role))
            for role, group in zip(ROLES, self.groups(), strict=True)
        )
        return ImageVectors(composition, state, obj, branches=(regions,))

    def values(self, tower: ImageTower, tokens: Tensor) -> Tensor:
        """What the last block reads from each patch, in the joint space: unit vectors ``B x L x D``."""
        read = tower.token_values(tower.depth - 1, tokens) + self.adapter(self.norm(tokens))
        _, read = tower.pool_and_project(read)
        values = tower.project_tokens(read[:, tower.num_prefix_tokens :])
        return F.normalize(values.float(), dim=-1)

    def attention(self, tower: ImageTower, tokens: Tensor) -> Tensor:
        """Where all queries look, role by role, ``B x K x L``; rows sum to 1."""
        whole, patches = split_tokens(tower, tokens)
        return torch.cat([group.attend(whole, patches) for group in self.groups()], 1)


def split_tokens(tower: ImageTower, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The token of the whole image ``B x 1 x W`` (the mean where there is none), and the patches."""
    prefix = tower.num_prefix_tokens
    return tokens[:, :1] if prefix else tokens.mean(1, keepdim=True), tokens[:, prefix:]
