"""The Typer app: one command per file; none imports torch before it computes."""

from __future__ import annotations

from typing import Annotated

import typer

from refiner_cli._version import __version__
from refiner_cli.cli import (
    bench,
    calibrate,
    compare,
    config,
    convert,
    dataset,
    demo,
    doctor,
    download,
    eval,  # noqa: A004 - the command's name
    export,
    guide,
    index,
    info,
    merge,
    predict,
    reproduce,
    runs,
    search,
    suggest,
    train,
)
from refiner_cli.cli.completion import add_completion
from refiner_cli.cli.console import terminal
from refiner_cli.cli.help_sections import SectionedCommand, SectionedGroup

app = typer.Typer(
    name="refiner",
    cls=SectionedGroup,
    help="Recognise state-object pairs such as 'sliced apple' in images, also pairs that training never saw.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help is plain text: square brackets in it are defaults, not markup
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(value: bool) -> None:
    if value:
        terminal.data(f"refiner {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and results only.")] = False,
) -> None:
    del version
    terminal.debug, terminal.quiet = debug, quiet


COMMANDS = (
    demo.demo,
    download.download,
    train.train,
    reproduce.reproduce,
    calibrate.recalibrate,
    eval.evaluate,
    compare.compare,
    predict.predict,
    index.index,
    merge.merge,
    search.search,
    suggest.suggest,
    convert.convert,
    export.export,
    config.config,
    info.info,
    runs.runs,
    doctor.doctor,
    bench.bench,
    guide.guide,
)
NAMES = {eval.evaluate: "eval", calibrate.recalibrate: "calibrate"}  # of functions that are called otherwise
for command in COMMANDS:
    app.command(name=NAMES.get(command), cls=SectionedCommand)(command)
app.add_typer(dataset.app)
for registered in (*app.registered_commands, *dataset.app.registered_commands):
    if registered.callback:
        add_completion(registered.callback)
