"""``refiner index``: compute what prediction needs of every image once, and keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refiner_cli.cli.common import Device, ModelPath, Precision, Workers, open_model
from refiner_cli.cli.console import PARTLY_DONE, Json, terminal
from refiner_cli.cli.inputs import STDIN, Exclude, Include, find_images, stop_with_saved_rows
from refiner_cli.errors import UsageError


def index(
    model: ModelPath,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Folders, files, or - for a list on stdin.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="The index folder.")],
    include: Include = None,
    exclude: Exclude = None,
    part_size: Annotated[int, typer.Option(min=1, help="Images per part of a new index.")] = 4096,
    device: Device = "auto",
    precision: Precision = "auto",
    batch: Annotated[int, typer.Option(min=0, help="Images per batch; 0: automatic.")] = 0,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Encode images once, to predict from them and search them in seconds. Again: bring it up to date."""
    from refiner_cli.core.runtime.device import pick_precision
    from refiner_cli.core.runtime.loader import pick_num_workers
    from refiner_cli.inference.batch_size import pick_batch_size
    from refiner_cli.inference.index import Index, is_index
    from refiner_cli.inference.indexing import check_indexable, encode_images, update_index, vector_roles
    from refiner_cli.inference.recogniser import Recogniser
    from refiner_cli.inference.scan import PathFilter

    images, total = find_images(paths, PathFilter(tuple(include or ()), tuple(exclude or ()), (out,)))
    loaded, info = open_model(model, device)
    check_indexable(loaded)
    recogniser = Recogniser(loaded, precision=pick_precision(precision, loaded.device)[0])
    fingerprints = recogniser.fingerprint()
    places = [] if paths == STDIN else [str(path.resolve()) for path in paths]
    if is_index(out):
        opened = Index.open(out)
        opened.check_model(fingerprints)
        if opened.info.places != places:
            raise UsageError(
                f"The index {out} holds images of {', '.join(opened.info.places)}.",
                hint="Give the same PATHs, or choose another -o DIR.",
            )
    else:
        kept = {name: str(fingerprints[name]) for name in ("model", "preprocessing", "precision")}
        opened = Index.create(
            out, kept | {"path": str(model.resolve() if model.exists() else model)}, info.method,
            vector_roles(loaded), loaded.backbone.embed_dim, places, part_size,
        )  # fmt: skip
    size, _ = pick_batch_size(batch, recogniser)
    count, _ = pick_num_workers(workers, loaded.device)
    with opened.locked(), stop_with_saved_rows(), terminal.progress("indexing") as progress:
        changes = update_index(
            opened,
            lambda wanted: encode_images(
                recogniser, images, wanted, opened.info.roles, batch=size, workers=count, log=terminal.note
            ),
            lambda done: progress(done, total()),
        )
    if not opened.images:
        raise UsageError(f"The index {out} holds no image.")
    if as_json:
        terminal.json({
            "schema": "refiner.index-update/1", "folder": str(out), "images": opened.images,
            "errors": opened.errors, "encoded": changes.encoded, "kept": changes.kept,
            "dropped": changes.dropped,
        })  # fmt: skip
    else:
        terminal.note(
            f"{opened.images} images in {out}: {changes.encoded} encoded, {changes.kept} as they were, "
            f"{changes.dropped} dropped, {opened.errors} unreadable"
        )
        terminal.note(f"next: refiner search {out} 'a composition', or refiner predict {model} {out}")
    if opened.errors:
        raise typer.Exit(PARTLY_DONE)
