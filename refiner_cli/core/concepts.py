"""Fine-grained refinement: concept queries read the patches and pick up regional semantics.

Shapes: ``B`` images, ``N`` visual tokens, ``K`` queries, ``W`` visual width, ``Q`` width of the
queries, ``D`` joint width, ``h`` heads.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refiner_cli.core.prompts import ROLES, Role

HEAD_WIDTH = 64
# Adam moves a parameter by about the learning rate a step. A gate that starts at zero would still be
# near zero at the end; counted in this unit it opens within an epoch if what it lets through helps.
GATE_UNIT = 30.0


class Attention(nn.Module):
    """Multi-head attention from ``B x K x Q`` to ``B x N x W`` that can return its weights."""

    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        self.heads = max(1, width // HEAD_WIDTH)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(source, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = self.project(x, source)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def project(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``B x h x K x Q/h``, keys and values ``B x h x N x Q/h``."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(source).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def weights(self, x: Tensor, source: Tensor) -> Tensor:
        """How much each query looks at each token, mean over heads, ``B x K x N``; rows sum to 1."""
        q, k, _ = self.project(x, source)
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).float().softmax(-1).mean(1)


class ConceptBlock(nn.Module):
    """One decoder block: concepts talk to each other, read the image, think.

    The queries are added again before each attention: what a concept looks for stays its own, however
    much it has read.
    """

    def __init__(self, width: int, source: int) -> None:
        super().__init__()
        self.norm_self, self.attend_self = nn.LayerNorm(width), Attention(width, width)
        self.norm_cross, self.attend_cross = nn.LayerNorm(width), Attention(width, source)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, queries: Tensor, tokens: Tensor) -> Tensor:
        """Concepts ``B x K x Q``, queries ``K x Q``, tokens ``B x N x W`` -> concepts ``B x K x Q``."""
        x, asked = self.ask(x, queries)
        x = x + self.attend_cross(asked, tokens)
        return x + self.mlp(self.norm_mlp(x))

    def ask(self, x: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """The concepts after they talked, and what they then look for in the image."""
        h = self.norm_self(x) + queries
        x = x + self.attend_self(h, h)
        return x, self.norm_cross(x) + queries


class ReadOut(nn.Module):
    """Attention-pool the concepts into one joint-space vector."""

    def __init__(self, width: int, joint: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.probe = nn.Parameter(torch.randn(width) * width**-0.5)
        self.project = nn.Linear(width, joint)
        self.gate = nn.Parameter(torch.zeros(joint))  # in units of GATE_UNIT

    def forward(self, concepts: Tensor) -> Tensor:
        """``B x K x Q`` -> ``B x D``, not normalised."""
        h = self.norm(concepts)
        share = (h @ self.probe).softmax(-1)  # B x K
        return self.project((share[..., None] * h).sum(1))

    def refine(self, v: Tensor, read: Tensor) -> Tensor:
        """Unit vectors ``B x D`` and what was read -> unit vectors; the same ones while the gate is zero."""
        return F.normalize(v + (GATE_UNIT * self.gate * read).float(), dim=-1)


class Concepts(nn.Module):
    """K concept queries and their three read-outs.

    Args:
        queries: K.
        blocks: decoder blocks.
        source: W, width of the visual tokens.
        width: Q, width of the queries.
        joint: D.
    """

    def __init__(self, *, queries: int, blocks: int, source: int, width: int, joint: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(source)
        self.blocks = nn.ModuleList([ConceptBlock(width, source) for _ in range(blocks)])
        self.read_outs = nn.ModuleDict({role: ReadOut(width, joint) for role in ROLES})

    def forward(self, tokens: Tensor) -> dict[Role, Tensor]:
        """Visual tokens ``B x N x W`` -> what the concepts say for each role, ``B x D``."""
        tokens = self.norm(tokens)
        x = self.queries.expand(len(tokens), -1, -1)  # B x K x Q
        for block in self.blocks:
            x = block(x, self.queries, tokens)
        return {role: self.read_outs[role](x) for role in ROLES}

    def refine(self, v: Tensor, read: dict[Role, Tensor]) -> dict[Role, Tensor]:
        """The class token ``B x D``, a unit vector, refined for each role by what the concepts say."""
        return {role: cast("ReadOut", self.read_outs[role]).refine(v, read[role]) for role in ROLES}

    @torch.no_grad()
    def attention(self, tokens: Tensor) -> Tensor:
        """What each query looks at in the last block, ``B x K x N``; rows sum to 1."""
        tokens = self.norm(tokens)
        x = self.queries.expand(len(tokens), -1, -1)
        for block in self.blocks[:-1]:
            x = block(x, self.queries, tokens)
        last = cast("ConceptBlock", self.blocks[-1])
        _, asked = last.ask(x, self.queries)
        return last.attend_cross.weights(asked, tokens)
