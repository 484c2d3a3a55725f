"""Open a run whose run.json is damaged or missing: its newest undamaged checkpoint holds the same facts."""

from __future__ import annotations

import json
from pathlib import Path

from refiner_cli.core.runtime.log import LogFn
from refiner_cli.training.checkpoints import Checkpoints
from refiner_cli.training.run_dir import Run
from refiner_cli.training.run_files import RUN, DamagedRunError
from refiner_cli.training.state import STATE_FILE


def open_or_recover(folder: Path, log: LogFn) -> Run:
    """Open a run to resume it; where run.json is damaged or missing, write it again.

    Raises ModelFileError if the folder is not a run, or holds no undamaged checkpoint to recover from.
    """
    try:
        return Run.open(folder)
    except DamagedRunError as error:
        newest = Checkpoints(folder / "checkpoints").newest_intact(log)
        if newest is None:
            raise
        source = newest / STATE_FILE
        run = Run.parse(folder, json.loads(source.read_bytes()), source)
        run.write()
        log(f"{error.message} {RUN} was written again from {newest.name}.")
        return run
