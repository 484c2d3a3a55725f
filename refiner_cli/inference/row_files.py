"""Files of rows that are made from others (merged parts, suggestions), and where their photos lie.

Beside such a file stands ``FILE.run.json``, as beside an output of ``predict``, with a schema of its own: the
rows can be converted, but ``predict`` does not go on with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refiner_cli.errors import UsageError
from refiner_cli.files import write_json
from refiner_cli.inference.output import OUTPUT_SCHEMA, read_run_record, sidecar_of
from refiner_cli.inference.scan import row_name


def refuse_predictions(file: Path) -> None:
    """Raise UsageError for an output of ``predict``, which another command must not replace."""
    if read_run_record(file).get("schema") == OUTPUT_SCHEMA and file.exists():
        raise UsageError(
            f"{row_name(str(file))} holds predictions of 'refiner predict'.", hint="Choose another name."
        )


def note_photos(file: Path, schema: str, places: Sequence[str]) -> None:
    """Write beside a file of rows what the paths in it are relative to."""
    write_json(sidecar_of(file), {"schema": schema, "header": {"places": list(places)}})
