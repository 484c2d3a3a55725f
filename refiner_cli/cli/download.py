"""``refiner download``: get datasets, or verify them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refiner_cli.cli import download_view
from refiner_cli.cli.common import Workers, process_count
from refiner_cli.cli.console import Json, terminal
from refiner_cli.cli.outputs import check_output_folder
from refiner_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from refiner_cli.data.download.downloader import Downloader
    from refiner_cli.data.progress import Report

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Catalogue names.")]


def download(
    names: Names = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the catalogue, and which datasets are downloaded.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be fetched, and fetch nothing.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Verify downloaded datasets again: counts, split files, every image."),
    ] = False,
    from_archive: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="An archive fetched by hand; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where datasets are kept.  [REFINER_HOME/datasets]")
    ] = None,
    delete_archives: Annotated[
        bool, typer.Option("--delete-archives", help="Remove the archives once their datasets are complete.")
    ] = False,
    workers: Workers = -1,
    as_json: Json = False,
) -> None:
    """Download and verify datasets. An interrupted download is resumed."""
    if sum((show, dry_run, verify, bool(from_archive))) > 1:
        raise UsageError("--list, --dry-run, --verify and --from-archive exclude each other.")
    for archive in from_archive or []:
        if not archive.is_file():
            raise InputError(f"The archive {archive} does not exist, or is not a file.")
    with terminal.report() as report:
        downloader = downloader_for(out, workers, report)
        known = downloader.catalogue
        if show:
            download_view.show_catalogue(downloader.place, known, as_json=as_json)
            return
        if not names:
            raise UsageError("A name is missing.", hint=f"The catalogue has {', '.join(known.datasets)}.")
        datasets = [known.find(name) for name in dict.fromkeys(names)]
        if dry_run:
            download_view.show_plan(downloader, datasets, as_json=as_json)
            return
        if verify:
            outcomes = downloader.reverify(datasets)
        else:
            if from_archive or not all(map(downloader.is_ready, datasets)):
                check_datasets_dir(out, downloader)
            outcomes = downloader.download(datasets, from_archive or [])
        removed = downloader.delete_archives(datasets) if delete_archives else []
    download_view.show_outcomes(downloader.place, outcomes, removed, as_json=as_json)


def downloader_for(out: Path | None, workers: int, report: Report) -> Downloader:
    """A downloader into the user's folder, with every catalogue."""
    from refiner_cli.data.download.catalog_files import load_catalogue
    from refiner_cli.data.download.datasets_dir import DatasetsDir
    from refiner_cli.data.download.downloader import Downloader
    from refiner_cli.data.paths import home

    def draw(folder: Path) -> None:
        from refiner_cli.demo.dataset import make_demo

        make_demo(folder)

    place = home(os.environ)
    return Downloader(
        DatasetsDir(out or place.datasets),
        load_catalogue(place.root),
        {"demo": draw},
        workers=process_count(workers),
        report=report,
    )


def check_datasets_dir(chosen: Path | None, downloader: Downloader, option: str = "--out") -> None:
    """Raise UsageError unless datasets can be written to their folder; ``chosen`` by the option, or usual."""
    check_output_folder(option if chosen else "REFINER_HOME", downloader.place.root)
