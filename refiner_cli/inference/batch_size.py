"""How many images are encoded at once."""

from __future__ import annotations

from refiner_cli.core.runtime.device import free_memory
from refiner_cli.inference.recogniser import BLOCK_PAIRS, Recogniser

MAX_BATCH = {"cuda": 256, "mps": 64, "cpu": 32}  # more gains nothing (on a CPU it overflows the caches)
MEMORY_SHARE = 0.5  # of the free memory
SCORE_COPIES = 6  # of a block of scores, in float64: totals, softmax, and what sorting takes
TOKEN_COPIES = 16  # of a layer's float32 activations
PATCH_SIZE = 14  # pixels; larger patches take less


def pick_batch_size(requested: int, recogniser: Recogniser) -> tuple[int, str]:
    """Images encoded at once, and why; 0 leaves the choice to the free memory."""
    if requested:
        return requested, "requested"
    model, crop = recogniser.model, recogniser.preprocess.crop
    tokens = crop.height * crop.width // PATCH_SIZE**2 + 1
    image = tokens * model.backbone.visual.width * 4 * TOKEN_COPIES
    image += min(len(recogniser.space.pairs), BLOCK_PAIRS) * 8 * SCORE_COPIES
    fits = max(1, int(MEMORY_SHARE * free_memory(model.device) / image))
    batch = min(MAX_BATCH.get(model.device.type, 32), 1 << (fits.bit_length() - 1))
    return batch, f"auto: about {image / 2**20:.0f} MiB per image"
