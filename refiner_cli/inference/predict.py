"""Files in, rows out: one row an image, whatever its file is like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from refiner_cli.core.batches import ImageFiles, Plain, single_thread
from refiner_cli.errors import DatasetError
from refiner_cli.inference.recogniser import Recogniser
from refiner_cli.inference.scan import Found
from refiner_cli.inference.sink import Row

Items = list[tuple[Tensor | DatasetError, int]]


def predict_files(
    recogniser: Recogniser, found: Iterable[Found], *, top_k: int, batch: int, workers: int
) -> Iterator[Row]:
    """Yield a row for every file, in order; one that cannot be read gives a row that says why."""
    listed = list(found)
    files = ImageFiles([one.file for one in listed], Plain(recogniser.preprocess))
    loader = torch.utils.data.DataLoader(
        files, batch_size=batch, collate_fn=keep, num_workers=workers, worker_init_fn=single_thread
    )
    for items in loader:
        readable = [pixels for pixels, _ in items if isinstance(pixels, Tensor)]
        made = iter(recogniser.predict_tensor(torch.stack(readable), top_k=top_k) if readable else [])
        for pixels, row in items:
            if isinstance(pixels, DatasetError):
                yield Row(listed[row].name, None, str(pixels))
            else:
                yield Row(listed[row].name, next(made))


def keep(items: Items) -> Items:
    """A batch as it is: errors have to stay in their places."""
    return items
