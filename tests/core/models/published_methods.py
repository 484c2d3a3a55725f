"""CLIP, CoOp, CSP and Troika written from their papers' formulas, in float64, without the package's code.

``python -m tests.core.models.published_methods`` writes the expected numbers of ``test_published.py``:
logits, loss and gradients of a few images on the built-in backbone's weights, with every dropout at zero and
batch normalisation in training. Of each gradient the fixture holds two numbers, its projections onto fixed
vectors. Sources: Zhou et al. (IJCV 2022), Nayak et al. (ICLR 2023), Huang et al. (CVPR 2024).

Shapes: ``B`` images, ``N`` image tokens, ``T`` text tokens, ``P`` texts, ``D`` joint width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from refiner_cli.core.towers.tiny import load_compact

FIXTURE = Path(__file__).with_name("published.json")
STATES, OBJECTS = ("old", "red", "wet"), ("car", "dog", "key")
PAIRS = ((0, 2), (1, 0), (2, 0), (2, 1))  # indices of state and object
TRUTH = (0, 1, 2, 3)
WEIGHTS = (1.0, 0.1, 0.1)  # of the losses of composition, state and object
HEADS = {"visual": 6, "text": 4}
DIM, TRACTION_BLOCKS = 16, 3  # of Troika
SOS, EOS = 49406, 49407
Tensors = dict[str, Tensor]


def fill(shape: Iterable[int], k: int, scale: float = 0.05) -> Tensor:
    """Values that are the same on every machine."""
    shape = tuple(shape)
    count = int(torch.tensor(shape).prod())
    return scale * torch.sin(1.3 * torch.arange(count, dtype=torch.float64) + k).reshape(shape)


def images() -> Tensor:
    """``B x 3 x 96 x 96``, preprocessed."""
    return fill((len(TRUTH), 3, 96, 96), 7, 1.0)


def projections(gradient: Tensor) -> list[float]:
    """Two numbers that change when any entry does."""
    return [float((gradient.double() * fill(gradient.shape, k, 1.0)).sum()) for k in (1, 2)]


def standardise(x: Tensor, over: int, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + eps).sqrt()


def layer_norm(w: Tensors, name: str, x: Tensor) -> Tensor:
    return standardise(x, -1) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros(()))


def heads_attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """``... x T x C`` each -> ``... x T x C``."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return ((logits if mask is None else logits + mask).softmax(-1) @ v).transpose(-2, -3).flatten(-2)


def self_attention(w: Tensors, name: str, x: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    qkv = x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]
    return linear(w, f"{name}.out_proj", heads_attend(*qkv.chunk(3, -1), heads, mask))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def clip_mlp(w: Tensors, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.c_proj", gelu(linear(w, f"{name}.c_fc", x)))


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def encode_text(w: Tensors, tokens: Tensor) -> Tensor:
    """Embedded prompts ``P x T x E`` that end in [EOS] -> unit vectors ``P x D``."""
    T = tokens.shape[1]
    x = tokens + w["positional_embedding"][:T]
    mask = torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1)
    for i in range(3):
        block = f"transformer.resblocks.{i}"
        normed = layer_norm(w, f"{block}.ln_1", x)
        x = x + self_attention(w, f"{block}.attn", normed, HEADS["text"], mask)
        x = x + clip_mlp(w, f"{block}.mlp", layer_norm(w, f"{block}.ln_2", x))
    return unit(layer_norm(w, "ln_final", x)[:, -1] @ w["text_projection"])


def encode_image(w: Tensors, pixels: Tensor, p: Tensors | None = None) -> Tensor:
    """``B x 3 x H x W`` -> all tokens in joint space, ``B x N x D``, the class token first.

    Args:
        p: Troika's parameters; None: the plain tower.
    """
    patches = pixels.unfold(2, 12, 12).unfold(3, 12, 12).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    x = patches @ w["visual.conv1.weight"].flatten(1).T
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = layer_norm(w, "visual.ln_pre", x + w["visual.positional_embedding"])

    def adapted(name: str, x: Tensor) -> Tensor:
        return 0.0 * x if p is None else 0.1 * linear(p, f"{name}.up", linear(p, f"{name}.down", x).relu())

    for i in range(6):
        block, own = f"visual.transformer.resblocks.{i}", f"adapters.{i}"
        normed = layer_norm(w, f"{block}.ln_1", x)
        attended = self_attention(w, f"{block}.attn", normed, HEADS["visual"])
        x = x + attended + adapted(f"{own}.attention", x)
        widened = clip_mlp(w, f"{block}.mlp", layer_norm(w, f"{block}.ln_2", x))
        x = x + widened + adapted(f"{own}.mlp", x)
    return layer_norm(w, "visual.ln_post", x) @ w["visual.proj"]


def prompt(w: Tensors, context: Tensor, *labels: Tensor) -> Tensor:
    """``[SOS] context label.. [EOS]`` with labels ``P x E`` each -> ``P x T x E``."""
    table, P = w["token_embedding.weight"], len(labels[0])
    start = torch.cat([table[[SOS]], context]).expand(P, -1, -1)
    return torch.cat([start, *(label[:, None] for label in labels), table[[EOS]].expand(P, 1, -1)], 1)


def start_values(w: Tensors) -> Tensors:
    """Where contexts and labels start: the embeddings of "a photo of", and the mean of a name's."""
    words, table = SimpleTokenizer(), w["token_embedding.weight"]
    context = table[words.encode("a photo of")]
    return {
        **{f"prompts.contexts.{role}": context for role in ("composition", "state", "object")},
        "prompts.states": torch.stack([table[words.encode(name)].mean(0) for name in STATES]),
        "prompts.objects": torch.stack([table[words.encode(name)].mean(0) for name in OBJECTS]),
    }


def troika_shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of Troika but those of the prompts."""
    W, D = 192, 128
    shapes: dict[str, tuple[int, ...]] = {
        "norm_patches.weight": (D,),
        "norm_patches.bias": (D,),
        "amount": (D,),
    }
    for i in range(6):
        for part in ("attention", "mlp"):
            name = f"adapters.{i}.{part}"
            shapes |= {f"{name}.down.weight": (DIM, W), f"{name}.down.bias": (DIM,)}
            shapes |= {f"{name}.up.weight": (W, DIM), f"{name}.up.bias": (W,)}
    for role in ("state", "object"):
        name = f"disentangle.{role}"
        shapes |= {f"{name}.linear.weight": (D, D), f"{name}.linear.bias": (D,)}
        shapes |= {f"{name}.norm.weight": (D,), f"{name}.norm.bias": (D,)}
    for i in range(TRACTION_BLOCKS):
        name = f"traction.{i}"
        shapes |= {f"{name}.{part}.weight": (D, D) for part in ("query", "key", "value", "out")}
        shapes |= {f"{name}.out.bias": (D,), f"{name}.norm.weight": (D,), f"{name}.norm.bias": (D,)}
        shapes |= {f"{name}.mlp.0.weight": (4 * D, D), f"{name}.mlp.0.bias": (4 * D,)}
        shapes |= {f"{name}.mlp.3.weight": (D, 4 * D), f"{name}.mlp.3.bias": (D,)}
    return shapes


def value_of(name: str, shape: Iterable[int], k: int) -> Tensor:
    """The value that a parameter is given, beyond where it starts; the factors of norms are around 1."""
    return fill(shape, k) + float("norm" in name and name.endswith(".weight"))


def parameters(w: Tensors, learned: Iterable[str], others: dict[str, tuple[int, ...]]) -> Tensors:
    """The parameters of a method; those of the prompts that are ``learned`` are moved from their start."""
    p = start_values(w)
    for k, name in enumerate(learned):
        p[name] = p[name] + fill(p[name].shape, k, 0.01)
    p |= {name: value_of(name, shape, k) for k, (name, shape) in enumerate(others.items())}
    for name in (*learned, *others):
        p[name] = p[name].clone().requires_grad_()
    return p


def prompted_logits(w: Tensors, p: Tensors, pixels: Tensor) -> list[Tensor]:
    """CoOp and CSP: temperature times cosine of the image and ``context state object``."""
    state, obj = (torch.tensor(column) for column in zip(*PAIRS, strict=True))
    text = prompt(w, p["prompts.contexts.composition"], p["prompts.states"][state], p["prompts.objects"][obj])
    return [w["logit_scale"].exp() * unit(encode_image(w, pixels)[:, 0]) @ encode_text(w, text).T]


def troika_logits(w: Tensors, p: Tensors, pixels: Tensor) -> list[Tensor]:
    """Of compositions ``B x P``, states and objects."""
    tokens = encode_image(w, pixels, p)
    state, obj = (torch.tensor(column) for column in zip(*PAIRS, strict=True))
    labels = {
        "composition": (p["prompts.states"][state], p["prompts.objects"][obj]),
        "state": (p["prompts.states"],),
        "object": (p["prompts.objects"],),
    }
    patches, found = tokens, []
    for role, names in labels.items():
        v = tokens[:, 0]
        if role != "composition":
            hidden = standardise(linear(p, f"disentangle.{role}.linear", v), 0)
            norm = f"disentangle.{role}.norm"
            v = (hidden * p[f"{norm}.weight"] + p[f"{norm}.bias"]).relu()
        text = encode_text(w, prompt(w, p[f"prompts.contexts.{role}"], *names))
        patches = layer_norm(p, "norm_patches", patches)
        x = text.expand(len(v), -1, -1)
        for i in range(TRACTION_BLOCKS):
            name = f"traction.{i}"
            k, u = linear(p, f"{name}.key", patches), linear(p, f"{name}.value", patches)
            x = x + linear(p, f"{name}.out", heads_attend(linear(p, f"{name}.query", x), k, u, 2))
            h = linear(p, f"{name}.mlp.0", layer_norm(p, f"{name}.norm", x))
            x = x + linear(p, f"{name}.mlp.3", h * torch.sigmoid(1.702 * h))
        moved = unit(text + p["amount"] * x)
        found.append(w["logit_scale"].exp() * torch.einsum("bd,bpd->bp", unit(v), moved))
    return found


def cross_entropy(logits: Tensor, truth: Iterable[int]) -> Tensor:
    return -logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(list(truth))].mean()


def numbers(method: str, w: Tensors) -> dict[str, object]:
    """What a method computes, as the fixture holds it."""
    prompts = ("prompts.contexts.composition", "prompts.contexts.state", "prompts.contexts.object")
    learned = {"coop": prompts[:1], "csp": ("prompts.states", "prompts.objects")}.get(
        method, (*prompts, "prompts.states", "prompts.objects")
    )
    others = troika_shapes() if method == "troika" else {}
    p = parameters(w, learned, others)
    logits = (troika_logits if method == "troika" else prompted_logits)(w, p, images())
    truths = (TRUTH, [PAIRS[i][0] for i in TRUTH], [PAIRS[i][1] for i in TRUTH])
    loss = sum(
        (weight * cross_entropy(x, t) for x, t, weight in zip(logits, truths, WEIGHTS, strict=False)),
        torch.zeros(()),
    )
    loss.backward()
    gradients = {name: p[name].grad for name in (*learned, *others)}
    return {
        "logits": [x.tolist() for x in logits],
        "loss": loss.item(),
        "gradients": {name: projections(g) for name, g in gradients.items() if g is not None},
        "sizes": {name: float(g.norm()) for name, g in gradients.items() if g is not None},
    }


def rounded(value: object) -> object:
    """Eight digits are enough to compare float32 with."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    w = {name: value.double() for name, value in load_compact().items()}
    found = {method: rounded(numbers(method, w)) for method in ("coop", "csp", "troika")}
    FIXTURE.write_text(json.dumps(found, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
