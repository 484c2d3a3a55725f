"""Pre-training of the tiny backbone: contrastive learning on drawn images with captions.

Command: ``python -m refiner_cli.experiments.pretrain_tiny --out refiner_cli/core/towers/tiny.safetensors``
Expected after 25 minutes on 2 cores: loss 2.0; zero-shot top-1 on clean scenes 78 % of the seen and 46 %
of the unseen validation pairs, on cluttered ones 35 % and 25 %.

``--holdout N`` makes a backbone without the unseen pairs of that hold-out of the demo.

The images are like those a web-trained CLIP saw: several objects of similar size, and a caption that names
some of them. So the class token becomes a bag of everything in the image, which is what clutter misleads.
No image and no caption contains a pair of the demo's unseen lists.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from refiner_cli.core.towers import tiny
from refiner_cli.data.labels import Pair
from refiner_cli.data.workers import in_processes
from refiner_cli.demo import scenes
from refiner_cli.demo.vocabulary import KINDS, STATES, backbone_pairs, demo_split, kind_of
from refiner_cli.machine import cores

IMAGES_PER_TASK = 500  # drawn by one task
MAX_SHIFT = 5  # pixels of random shift


@dataclass(frozen=True)
class Recipe:
    images: int = 60_000
    steps: int = 2_000
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: int = 200
    masked: float = 0.5  # share of patches dropped, which halves the work,
    masked_until: float = 0.85  # up to this share of the steps
    probed: int = 400  # images of seen and of unseen pairs to measure on, every 500 steps
    holdout: int = 0  # which list of unseen pairs; also the seed of everything random


def caption(shown: list[Pair], rng: np.random.Generator) -> str:
    """One caption for an image of ``shown``; often partial, as captions on the web are."""
    named = [shown[i] for i in rng.permutation(len(shown))[: int(rng.integers(1, len(shown) + 1))]]
    state, obj = named[0]
    if len(named) == 1:
        kinds = [
            f"a photo of {state} {obj}", f"a photo of {state} {obj}", f"{state} {obj}",
            f"a photo of {obj}", f"something {state}", f"{state} {obj}, {kind_of(obj)}",
        ]  # fmt: skip
        return kinds[int(rng.integers(len(kinds)))]
    return "a photo of " + " and ".join(f"{s} {o}" for s, o in named)


def draw_image(rng: np.random.Generator, holdout: int) -> tuple[np.ndarray, list[Pair]]:
    """One image (``96 x 96 x 3`` uint8) and the pairs in it."""
    pairs = backbone_pairs(holdout)
    shown = [pairs[i] for i in rng.choice(len(pairs), int(rng.integers(1, 4)), replace=False)]
    return np.asarray(scenes.gathering(shown, rng)), shown


def draw_chunk(task: tuple[int, int], holdout: int) -> tuple[np.ndarray, list[list[Pair]]]:
    """``IMAGES_PER_TASK`` images; a function of the task (seed, number) and the hold-out."""
    rng = np.random.default_rng(task)
    drawn = [draw_image(rng, holdout) for _ in range(IMAGES_PER_TASK)]
    return np.stack([pixels for pixels, _ in drawn]), [shown for _, shown in drawn]


def draw_pool(recipe: Recipe, folder: Path) -> tuple[np.ndarray, list[list[Pair]]]:
    """All images, in a memory-mapped file, and the pairs in each."""
    pool = np.lib.format.open_memmap(
        folder / "pool.npy", "w+", np.uint8, (recipe.images, scenes.SIZE, scenes.SIZE, 3)
    )
    shown: list[list[Pair]] = []
    tasks = [(recipe.holdout, i) for i in range(recipe.images // IMAGES_PER_TASK)]
    drawn = in_processes(partial(draw_chunk, holdout=recipe.holdout), tasks, cores())
    for i, (pixels, names) in enumerate(drawn):
        pool[i * IMAGES_PER_TASK : (i + 1) * IMAGES_PER_TASK] = pixels
        shown += names
    return pool, shown


def normalise(pixels: Tensor) -> Tensor:
    """``B x H x W x 3`` uint8 to ``B x 3 x H x W`` with CLIP's mean and deviation."""
    mean, std = (torch.tensor(x) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def training_batches(
    pool: np.ndarray, shown: list[list[Pair]], recipe: Recipe
) -> Iterator[tuple[Tensor, list[str]]]:
    """Endless shuffled batches, shifted a little and with a new caption each time."""
    rng = np.random.default_rng((recipe.holdout, 10**6))
    while True:
        order = rng.permutation(len(shown))
        for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
            rows = np.sort(order[start : start + recipe.batch])
            pixels = torch.from_numpy(pool[rows])
            dy, dx = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
            pixels = torch.roll(pixels, (int(dy), int(dx)), (1, 2))
            yield normalise(pixels), [caption(shown[i], rng) for i in rows]


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """CLIP's symmetric loss; equal captions count as equally right. Inputs ``B x D``, normalised."""
    index = {name: i for i, name in enumerate(dict.fromkeys(captions))}
    ids = torch.tensor([index[name] for name in captions])
    target = (ids[:, None] == ids[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * (0.5 + 0.5 * math.cos(math.pi * done))


@torch.no_grad()
def zero_shot_accuracy(
    model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, clutter: int, recipe: Recipe
) -> str:
    """Zero-shot top-1 over all feasible benchmark pairs, in percent, by part of the split."""
    fixed = demo_split(recipe.holdout)
    parts = {"seen": fixed.train, "unseen": fixed.val_unseen}  # never the test pairs
    pairs = sorted({*fixed.train, *fixed.val_unseen})
    text = F.normalize(model.encode_text(tokenizer([f"a photo of {s} {o}" for s, o in pairs])), dim=-1)
    rng, found, percent = np.random.default_rng(7), [], 100 / recipe.probed
    for name, part in parts.items():
        truth = [part[int(rng.integers(len(part)))] for _ in range(recipe.probed)]
        drawn = [np.asarray(scenes.scene(pair, fixed.train, rng, clutter)) for pair in truth]
        image = F.normalize(model.encode_image(normalise(torch.from_numpy(np.stack(drawn)))), dim=-1)
        best = [pairs[i] for i in (image @ text.T).argmax(1).tolist()]
        whole = sum(b == t for b, t in zip(best, truth, strict=True)) * percent
        state, obj = (sum(b[k] == t[k] for b, t in zip(best, truth, strict=True)) * percent for k in (0, 1))
        found.append(f"{name} {whole:.1f} (state {state:.1f}, object {obj:.1f})")
    return f"clutter {clutter}: " + ", ".join(found)


def caption_vocabulary(tokenizer: open_clip.SimpleTokenizer) -> Tensor:
    """The sorted token ids that captions can contain."""
    words = [*STATES, *KINDS, *(o for names in KINDS.values() for o in names)]
    text = " ".join(["a photo of and something , a picture the with", *words])
    ids = set(tokenizer.encode(text)) | {tokenizer.sot_token_id, tokenizer.eot_token_id, 0}
    return torch.tensor(sorted(ids))


def pretrain(recipe: Recipe, out: Path, log: Callable[[str], None]) -> None:
    """Draw, train and save; ``out`` is also written, unfinished, every 500 steps."""
    torch.manual_seed(recipe.holdout)
    config = tiny.tiny_config()
    vision = {**config["vision_cfg"], "patch_dropout": recipe.masked}
    model = open_clip.CLIP(config["embed_dim"], vision, config["text_cfg"])
    text = config["text_cfg"]
    with torch.no_grad():
        model.token_embedding.weight.copy_(tiny.word_table(text["vocab_size"], text["width"]))
    tokenizer = open_clip.SimpleTokenizer(context_length=text["context_length"])
    used = caption_vocabulary(tokenizer)
    decay = [p for p in model.parameters() if p.ndim >= 2 and p is not model.token_embedding.weight]
    plain = [p for p in model.parameters() if p.ndim < 2 or p is model.token_embedding.weight]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        pool, shown = draw_pool(recipe, Path(folder))
        log(f"{len(shown)} images drawn in {time.perf_counter() - began:.0f} s")
        for step, (images, captions) in zip(
            range(recipe.steps), training_batches(pool, shown, recipe), strict=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            if step == int(recipe.masked_until * recipe.steps):
                model.visual.patch_dropout.prob = 0.0
            # The fused CPU attention spends half of a step in its backward pass.
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                image = model.encode_image(images, normalize=True)
                words = model.encode_text(tokenizer(captions), normalize=True)
                loss = contrastive_loss(image.float(), words.float(), model.logit_scale.exp(), captions)
                optimizer.zero_grad()
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            if step % 100 == 0 or step == recipe.steps - 1:
                log(f"step {step} loss {loss.item():.3f} {time.perf_counter() - began:.0f} s")
            if step % 500 == 499 or step == recipe.steps - 1:
                model.eval()
                for clutter in (0, scenes.CLUTTER):
                    log(zero_shot_accuracy(model, tokenizer, clutter, recipe))
                model.train()
                tiny.save_compact(model.state_dict(), used, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--images", type=int, default=Recipe.images)
    parser.add_argument(
        "--holdout", type=int, default=Recipe.holdout, help="which list of unseen pairs of the demo"
    )
    options = parser.parse_args()
    recipe = Recipe(options.images, options.steps, holdout=options.holdout)
    pretrain(recipe, options.out, partial(print, flush=True))


if __name__ == "__main__":
    main()
