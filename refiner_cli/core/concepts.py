"""Fine-grained refinement: concept queries read the patches and pick up regional semantics.

The queries go through the last blocks of CLIP's own image tower as if each were another class token:
they talk to each other, read the patches and end in the joint space, where CLIP already aligned what
its blocks read with words. Decoder blocks that start from nothing know no word at first, and learned
too little in the time that prompts and adapters need. Class token and patches do not see the queries.

Shapes: ``B`` images, ``N`` visual tokens, ``K`` queries, ``W`` visual width, ``D`` joint width.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.adapters import BlockAdapter
from refiner_cli.core.prompts import ROLES, Role
from refiner_cli.core.visual import Tower, run

# Adam moves a parameter by about the learning rate a step. A gate that starts at zero would still be
# near zero at the end; counted in this unit it opens within an epoch if what it lets through helps.
GATE_UNIT = 30.0
SPREAD = 0.5  # standard deviation of the queries around the class token


class ReadOut(nn.Module):
    """Attention-pool the concepts into one joint-space vector.

    Args:
        joint: D.
    """

    def __init__(self, joint: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(joint)
        self.probe = nn.Parameter(torch.randn(joint) * joint**-0.5)
        self.project = nn.Linear(joint, joint)
        nn.init.eye_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.gate = nn.Parameter(torch.zeros(joint))  # in units of GATE_UNIT

    def forward(self, concepts: Tensor) -> Tensor:
        """Unit vectors ``B x K x D`` -> ``B x D``, not normalised."""
        share = (self.norm(concepts) @ self.probe).softmax(-1)  # B x K
        return self.project((share[..., None] * concepts).sum(1))

    def refine(self, v: Tensor, read: Tensor) -> Tensor:
        """Unit vectors ``B x D`` and what was read -> unit vectors; the same ones while the gate is zero."""
        return F.normalize(v + (GATE_UNIT * self.gate * read).float(), dim=-1)


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
        self.read_outs = nn.ModuleDict({role: ReadOut(joint) for role in ROLES})

    def forward(self, tower: Tower, x: Tensor, *, recompute: bool = False) -> dict[Role, Tensor]:
        """Tokens ``B x N x W`` that enter the blocks -> what the concepts say for each role, ``B x D``."""
        _, found = tower.finish(self.read(tower, x, tower.depth, recompute=recompute))
        concepts = F.normalize(tower.project(found), dim=-1)  # B x K x D
        return {role: self.read_outs[role](concepts) for role in ROLES}

    def read(self, tower: Tower, x: Tensor, until: int, *, recompute: bool = False) -> Tensor:
        """Queries in front of the patches, ``B x (K + L) x W``, through the blocks below ``until``.

        They start around the class token. Out of the tower's last block come the queries alone.
        """
        start = x[:, :1] if tower.prefix else x.mean(1, keepdim=True)
        x = torch.cat([start + self.queries, x[:, tower.prefix :]], 1)
        adapters = [cast("BlockAdapter", adapter) for adapter in self.adapters]
        blocks, rows = range(tower.depth - len(adapters), until), len(self.queries)
        return run(tower, x, blocks, adapters, rows=rows, recompute=recompute)

    def refine(self, v: Tensor, read: dict[Role, Tensor]) -> dict[Role, Tensor]:
        """The class token ``B x D``, a unit vector, refined for each role by what the concepts say."""
        return {role: cast("ReadOut", self.read_outs[role]).refine(v, read[role]) for role in ROLES}

    @torch.no_grad()
    def attention(self, tower: Tower, x: Tensor) -> Tensor:
        """What each query looks at in the last block, ``B x K x L`` over the patches; rows sum to 1."""
        last = tower.depth - 1
        weights = tower.attention(last, self.read(tower, x, last))[
            :, : len(self.queries), len(self.queries) :
        ]
        return weights / weights.sum(-1, keepdim=True)
