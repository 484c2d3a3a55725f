"""``refiner dataset``: make a dataset of a user's photos, and check any dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli.common import Workers, open_dataset, process_count
from refiner_cli.cli.console import PARTLY_DONE, Json, terminal
from refiner_cli.cli.outputs import check_new_folder
from refiner_cli.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from refiner_cli.data.create.create import Created
    from refiner_cli.data.create.photos import PhotoCollection
    from refiner_cli.data.download.catalog import Counts
    from refiner_cli.data.labels import Pair

app = typer.Typer(name="dataset", help="Make a dataset of your photos, or check one.", no_args_is_help=True)
DEFAULT_UNSEEN = 0.2
MAX_NAMED = 20  # files or pairs named one by one


@app.callback()
def dataset() -> None:
    """Make a dataset of your photos, or check one."""


@app.command()
def create(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="A folder of state_object/ or state/object/ folders, optionally below train/, val/ and "
            "test/; a CSV, TSV or JSON-lines file with path, state, object and, optionally, split; or a JSON "
            "export of Label Studio.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to create.")],
    unseen_fraction: Annotated[
        float | None, typer.Option(help=f"Share of the pairs that training never sees.  [{DEFAULT_UNSEEN}]")
    ] = None,
    unseen_pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Exactly these pairs instead, one 'state object' per line."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder that paths in a file are relative to.  [the file's own]"
        ),
    ] = None,
    all_train: Annotated[
        bool,
        typer.Option("--all-train", help="Hold nothing out: for a few photos, which are all to be learned."),
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides which pairs and images are held out.")] = 0,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images instead of linking them.")] = False,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Make a dataset of your own photos.

    It has the folder format of the published benchmarks, with seen and unseen pairs, for 'refiner train DIR'.
    """
    if unseen_fraction is not None and unseen_pairs is not None:
        raise UsageError("--unseen-fraction and --unseen-pairs exclude each other.")
    if all_train and (unseen_fraction is not None or unseen_pairs is not None):
        raise UsageError("--all-train leaves no pair unseen.", hint="Leave the other option out.")
    if unseen_fraction is not None and not 0 <= unseen_fraction < 1:
        raise UsageError(
            f"--unseen-fraction is {unseen_fraction:g}.", hint="Give a number from 0 to below 1."
        )
    if out.resolve() == source.resolve() or out.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"--out {out} lies in the photo folder.", hint="Choose a folder outside of it, or its images "
            "would be photos the next time.",
        )  # fmt: skip
    check_new_folder("--out", out)
    from refiner_cli.data.create.create import SplitOptions, create_dataset
    from refiner_cli.data.create.photos import read_unseen
    from refiner_cli.data.create.sources import read_photos

    if images and source.is_dir():
        raise UsageError(f"--images is for a table or an export, and {source} is a folder.")
    found = read_photos(source, images)
    given = any(photo.split for photo in found.photos)
    if given and (unseen_pairs or unseen_fraction is not None):
        raise UsageError(
            f"{source} gives every photo its split, so --unseen-{'pairs' if unseen_pairs else 'fraction'} "
            "could choose no pair.",
            hint="Leave the option out, or the splits.",
        )
    for note in found.notes:
        terminal.note(note)
    if given and all_train:
        terminal.note("--all-train: every photo is for training, whatever its split")
    pairs = [photo.pair for photo in found.photos]
    unseen = None if unseen_pairs is None else read_unseen(unseen_pairs, pairs, terminal.note)
    fraction = DEFAULT_UNSEEN if unseen_fraction is None else unseen_fraction
    with terminal.report() as report:
        created = create_dataset(
            found.photos,
            out,
            SplitOptions(fraction, unseen, seed, all_train=all_train),
            placing="copy" if copy else "link",
            workers=process_count(workers),
            report=report,
            stop=Event(),
        )
    show_created(found, created)
    if as_json:
        terminal.json(creation_json(out, found, created))
    else:
        terminal.data(str(out))
        terminal.next("refiner", "train", out)
    if created.left_out or found.unlabelled:
        raise typer.Exit(PARTLY_DONE)


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="A name of the catalogue or a folder.")],
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Check every image and list of a dataset.

    All that training would stumble over is named at once.
    """
    from refiner_cli.data.download.verify import verify

    root = open_dataset(dataset).root
    with terminal.report() as report:
        found = verify(root, None, workers=process_count(workers), report=report, stop=Event())
    name_each("problem: {}", found.problems)
    name_each("missing: {}", found.missing)
    name_each("unreadable: {}", [f"{fault.path} ({fault.reason})" for fault in found.unreadable])
    for note in (*found.notes, *metric_notes(found.counts)):
        terminal.note(note)
    if as_json:
        terminal.json({"schema": "refiner.dataset-check/1", **found.to_json()})
    else:
        images = sum(getattr(found.counts, f"{split}_images") or 0 for split in ("train", "val", "test"))
        wrong = len(found.problems) + len(found.missing) + len(found.unreadable)
        terminal.data(f"{found.name}: {images:,} images, {wrong or 'no'} problems")
    if not found.usable:
        raise typer.Exit(DatasetError.exit_code)
    if found.unreadable:
        raise typer.Exit(PARTLY_DONE)


def show_created(found: PhotoCollection, created: Created) -> None:
    """Say what the dataset holds, and name what it does not hold, and why."""
    name_each("left out: {}", [f"{fault.path} ({fault.reason})" for fault in created.left_out])
    name_each("left out, not in a folder that names a pair: {}", list(map(str, found.unlabelled)))
    name_each(
        "left out, the same photo again: {}",
        [
            f"{each.photo.file} (listed more than once)"
            if each.photo.file == each.same_as.file
            else f"{each.photo.file} (as {each.same_as.file})"
            for each in created.repeated
        ],
    )
    for note in created.verification.notes:
        terminal.note(note)
    counts, unseen = created.verification.counts, created.unseen
    for split, pairs in (("val", unseen.val), ("test", unseen.test)):
        if pairs:
            terminal.note(f"unseen pairs in {split}: {quote_pairs(pairs)}")
    for note in metric_notes(counts):
        terminal.note(note)
    left_out = len(created.left_out) + len(found.unlabelled) + len(created.repeated)
    terminal.note(
        f"{counts.states} states, {counts.objects} objects, {counts.train_pairs} training pairs, "
        f"unseen pairs: {counts.val_unseen_pairs} in val, {counts.test_unseen_pairs} in test; "
        f"{created.linked} images linked, "
        f"{created.copied} copied, {left_out} left out"
    )


def metric_notes(counts: Counts) -> Iterator[str]:
    """What training and evaluation cannot measure on this dataset."""
    for split, seen, unseen, use, empty in (
        ("val", counts.val_seen_pairs, counts.val_unseen_pairs, "training selects its checkpoint by {}",
         "training selects its checkpoint by the training loss"),
        ("test", counts.test_seen_pairs, counts.test_unseen_pairs, "evaluation measures {} alone",
         "there is nothing to evaluate on"),
    ):  # fmt: skip
        if not seen and not unseen:
            yield f"{split} holds no images: {empty}"
        elif not seen or not unseen:
            kind, metric = ("unseen", "S") if seen else ("seen", "U")
            yield f"{split} holds no {kind} pair, so AUC and HM are undefined there: {use.format(metric)}"


def name_each(sentence: str, things: Sequence[str]) -> None:
    """A note for each of the first things, and one for the number of the others."""
    for thing in things[:MAX_NAMED]:
        terminal.note(sentence.format(thing))
    if len(things) > MAX_NAMED:
        terminal.note(sentence.format(f"{len(things) - MAX_NAMED} more; --json names all"))


def quote_pairs(pairs: Sequence[Pair]) -> str:
    more = f" and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
    return ", ".join(f"'{state} {obj}'" for state, obj in pairs[:MAX_NAMED]) + more


def creation_json(out: Path, found: PhotoCollection, created: Created) -> dict[str, object]:
    """The object of ``--json``."""
    return {
        "schema": "refiner.dataset-create/1",
        "path": str(out),
        **created.verification.to_json(),
        "linked": created.linked,
        "copied": created.copied,
        "left_out": [{"path": fault.path, "reason": fault.reason} for fault in created.left_out],
        "unlabelled": list(map(str, found.unlabelled)),
        "repeated": [
            {"path": str(each.photo.file), "same_as": str(each.same_as.file)} for each in created.repeated
        ],
        "unseen": {"val": created.unseen.val, "test": created.unseen.test},
    }
