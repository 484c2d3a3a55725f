"""``refiner dataset create``: own photos become a benchmark."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import Workers
from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.progress import show_progress
from refiner_cli.errors import UsageError

if TYPE_CHECKING:
    from refiner_cli.data.create.create import Created

app = typer.Typer(name="dataset", help="Make datasets of own photos.", no_args_is_help=True)
DEFAULT_UNSEEN = 0.2


@app.callback()
def dataset() -> None:
    """Make datasets of own photos."""


@app.command()
def create(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of state_object/ or state/object/ folders, or a CSV, TSV or JSON-lines file with "
            "path, state, object and maybe split.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")],
    unseen_fraction: Annotated[
        float | None, typer.Option(help=f"Share of the pairs that training never sees.  [{DEFAULT_UNSEEN}]")
    ] = None,
    unseen_pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Exactly these pairs instead: 'state object' a line.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which pairs and images are held out.")] = 0,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images; else they are linked.")] = False,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Own photos become the published folder format, with seen and unseen splits, for 'refiner train DIR'."""
    if unseen_fraction is not None and unseen_pairs is not None:
        raise UsageError("--unseen-fraction and --unseen-pairs exclude each other.")
    if unseen_fraction is not None and not 0 <= unseen_fraction < 1:
        raise UsageError(
            f"--unseen-fraction is {unseen_fraction:g}.", hint="Give a number from 0 to below 1."
        )
    from refiner_cli.data.create import create as making
    from refiner_cli.data.create.photos import read_photos, read_unseen
    from refiner_cli.machine import cores

    unseen = None if unseen_pairs is None else read_unseen(unseen_pairs)
    fraction = DEFAULT_UNSEEN if unseen_fraction is None else unseen_fraction
    with show_progress(terminal) as report:
        created = making.create_dataset(
            read_photos(source),
            out,
            making.SplitOptions(fraction, unseen, seed),
            placing="copy" if copy else "link",
            workers=cores() if workers < 0 else max(1, workers),
            report=report,
            stop=Event(),
        )
    show_created(out, created, as_json=as_json)


def show_created(out: Path, created: Created, *, as_json: bool) -> None:
    found = created.verification
    for fault in created.left_out:
        terminal.note(f"left out, as it cannot be decoded: {fault.path} ({fault.reason})")
    for note in found.notes:
        terminal.note(note)
    counts = found.counts
    terminal.note(
        f"{counts.states} states, {counts.objects} objects, {counts.train_pairs} training pairs, "
        f"{counts.val_unseen_pairs} + {counts.test_unseen_pairs} unseen; {created.linked} images linked, "
        f"{created.copied} copied, {len(created.left_out)} left out"
    )
    if as_json:
        left_out = [{"path": fault.path, "reason": fault.reason} for fault in created.left_out]
        terminal.json({"schema": "refiner.dataset-create/1", "path": str(out), **found.to_json(),
                       "linked": created.linked, "copied": created.copied, "left_out": left_out})  # fmt: skip
    else:
        terminal.data(str(out))
