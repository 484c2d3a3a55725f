"""How ``refiner download`` shows the catalogue, a plan, and its result."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli.console import new_table, terminal
from refiner_cli.data.disk import format_size

if TYPE_CHECKING:
    from refiner_cli.data.download.catalog import Catalogue, Dataset
    from refiner_cli.data.download.datasets_dir import DatasetsDir, Status
    from refiner_cli.data.download.downloader import Downloaded, Downloader

DOWNLOAD_SCHEMA = "refiner.download/1"


def show_catalogue(place: DatasetsDir, known: Catalogue, *, as_json: bool) -> None:
    found = [place.status(dataset) for dataset in known.datasets.values()]
    if as_json:
        listed = [
            {**status.dataset.model_dump(mode="json", exclude_none=True), "path": str(status.folder),
             "present": status.present, "verified": status.verified, "unreadable": status.unreadable,
             "fetched_bytes": status.fetched, "origin": known.origins.get(status.dataset.name, "")}
            for status in found
        ]  # fmt: skip
        terminal.json({"schema": DOWNLOAD_SCHEMA, "root": str(place.root), "datasets": listed})
        return
    table = new_table(f"Catalogue; datasets are kept in {place.root}", "name", "images", "pairs", "status")
    for status in found:
        counts = status.dataset.expected
        images = (counts.train_images, counts.val_images, counts.test_images)
        total = f"{sum(map(int, filter(None, images))):,}" if all(images) else ""
        pairs = "" if counts.train_pairs is None else f"{counts.train_pairs:,}"
        table.add_row(status.dataset.name, total, pairs, status_text(status))
    terminal.table(table)
    for status in found:
        origin = known.origins.get(status.dataset.name)
        added = f" Added by {origin}." if origin else ""
        terminal.words(
            f"{status.dataset.name:12} {status.dataset.title}. Licence: {status.dataset.licence}. "
            f"{status.dataset.home}{added}",
            hanging=" " * 13,
        )


def status_text(status: Status) -> str:
    """``"verified 2026-01-31"`` and the like."""
    if status.present:
        broken = f", {status.unreadable} unreadable" if status.unreadable else ""
        return f"verified {status.verified[:10]}{broken}" if status.verified else "not verified"
    if status.fetched:
        return f"{format_size(status.fetched)} fetched"
    return "by hand" if status.dataset.by_hand else "-"


def show_plan(downloader: Downloader, datasets: Sequence[Dataset], *, as_json: bool) -> None:
    planned = downloader.plan(datasets)
    root = downloader.place.root
    free = shutil.disk_usage(
        next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    ).free
    if as_json:
        files: list[dict[str, Any]] = [
            {"file": file.source.file, "dataset": file.dataset.name, "bytes": file.size,
             "fetched_bytes": file.have, "url": file.url}
            for file in planned
        ]  # fmt: skip
        terminal.json({"schema": DOWNLOAD_SCHEMA, "root": str(root), "free_bytes": free, "files": files})
        return
    table = new_table("To fetch", "file", "size", "fetched", "from")
    table.columns[-1].justify = "left"
    for file in planned:
        source = file.url or (f"no address answers; by hand: {file.dataset.home}")
        size = "unknown" if file.size is None else format_size(file.size)
        table.add_row(file.source.file, size, format_size(file.have), source)
    if planned:
        terminal.table(table)
    else:
        terminal.data("Nothing needs to be fetched.")
    terminal.data(f"{format_size(free)} free in {root}")


def show_outcomes(
    place: DatasetsDir, outcomes: Sequence[Downloaded], removed: Sequence[Path], *, as_json: bool
) -> None:
    for file in removed:
        terminal.note(f"removed {file}")
    if as_json:
        listed = [
            {"name": outcome.dataset.name, "path": str(outcome.folder), "already": outcome.already,
             "verification": outcome.verification.to_json() if outcome.verification else None}
            for outcome in outcomes
        ]  # fmt: skip
        terminal.json({"schema": DOWNLOAD_SCHEMA, "root": str(place.root), "datasets": listed})
        return
    for outcome in outcomes:
        found = outcome.verification
        if found:
            counts = found.counts
            terminal.note(
                f"{outcome.dataset.title}: verified; {counts.states} states, {counts.objects} objects, "
                f"{counts.train_images} + {counts.val_images} + {counts.test_images} images"
            )
            for note in (*found.notes, *(f"unreadable: {f.path} ({f.reason})" for f in found.unreadable)):
                terminal.note(f"  {note}")
        terminal.data(str(outcome.folder))
        if not outcome.already:
            terminal.note(f"  licence: {outcome.dataset.licence}")
            for paper in outcome.dataset.citation:
                terminal.note(f"  cite: {paper}")
    from refiner_cli.data.paths import home

    for outcome in [one for one in outcomes if one.dataset.kind != "vectors"][:1]:
        usual = outcome.folder.parent == home(os.environ).datasets
        terminal.next("refiner", "train", outcome.dataset.name if usual else outcome.folder)
