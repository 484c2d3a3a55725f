"""Export: one folder with weights, configuration and a model card, whole or not there."""

from __future__ import annotations

from pathlib import Path

from refiner_cli._version import __version__
from refiner_cli.core.model_io.checkpoint import ModelInfo, write_model
from refiner_cli.core.models.base import Model
from refiner_cli.core.runtime.device import PRECISIONS
from refiner_cli.errors import UsageError
from refiner_cli.files import atomic_folder
from refiner_cli.metric_names import HEADLINE_METRICS, format_metric

CARD = """---
library_name: refiner
pipeline_tag: zero-shot-image-classification
tags: [compositional-zero-shot-learning, clip, safetensors]
---
# {method} on {dataset}

Recognises {states} states of {objects} objects ({pairs} known pairs, {seen} of them seen in training).
Made by refiner {version} on the backbone {backbone} ({pretrained}).

```sh
refiner predict . PHOTOS
```

| validation, closed world | S | U | HM | AUC |
|---|---|---|---|---|
| after step {step} | {scores} |

The weights are stored as {dtype}; the backbone is {included}. Inference weights (state {b_s:g},
object {b_o:g}) and the seen-unseen bias ({bias:.2f}) were chosen on the validation split.
"""


def export_model(folder: Path, model: Model, info: ModelInfo, *, dtype: str, with_backbone: bool) -> int:
    """Write ``folder``, which must not exist.

    Args:
        dtype: "fp32", "fp16" or "bf16".
        with_backbone: whether the folder needs nothing else, or names the backbone only.

    Returns:
        Bytes written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already.", hint="Choose a folder that does not exist yet.")
    with atomic_folder(folder) as part:
        write_model(part, model, info, with_backbone=with_backbone, dtype=PRECISIONS[dtype])
        saver = model.backbone.text.tokens.save
        if with_backbone and saver is not None:
            saver(str(part / "tokenizer"))
        (part / "README.md").write_text(
            model_card(model, info, dtype=dtype, with_backbone=with_backbone), "utf-8", "backslashreplace"
        )
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def model_card(model: Model, info: ModelInfo, *, dtype: str, with_backbone: bool) -> str:
    """The model card."""
    spec, space, chosen = model.backbone.spec, model.space, model.calibration
    return CARD.format(
        method=info.method.capitalize(),
        dataset=info.dataset,
        states=len(space.states),
        objects=len(space.objects),
        pairs=len(space.pairs),
        seen=len(space.seen_pairs),
        version=__version__,
        backbone=spec.name,
        pretrained=spec.pretrained,
        step=info.step,
        scores=" | ".join(format_metric(info.metrics.get(name)) for name in HEADLINE_METRICS),
        dtype=dtype,
        included="included" if with_backbone else "not included and is loaded by name",
        b_s=chosen.state_weight,
        b_o=chosen.object_weight,
        bias=chosen.bias,
    )
