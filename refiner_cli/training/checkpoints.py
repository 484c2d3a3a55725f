"""The checkpoints of a run: folders that are complete or absent, with checksums of their files.

The last two are kept, and the best one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from refiner_cli.core.model_io.checksums import verify_checksums, write_checksums
from refiner_cli.core.runtime.log import LogFn
from refiner_cli.errors import ModelFileError
from refiner_cli.files import atomic_folder
from refiner_cli.training.folder_lock import remove_temporary

KEPT = 2
STEP_FOLDER = re.compile(r"step-(\d{8,})")
REPLACED = re.compile(r"\.(step-\d{8,})\.replaced")  # the older one of the same step, for a moment


@dataclass(frozen=True)
class Checkpoints:
    """The folder ``checkpoints/`` of a run."""

    folder: Path

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def all(self) -> list[Path]:
        """All checkpoints, oldest first; none of them was checked."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(
            (path for path in found if STEP_FOLDER.fullmatch(path.name) and path.is_dir()), key=step_of
        )

    @contextlib.contextmanager
    def new(self, step: int) -> Iterator[Path]:
        """The folder to fill. One of the same step, saved before its validation, is replaced."""
        target = self.path(step)
        replaced = self.folder / f".{target.name}.replaced"
        try:
            with atomic_folder(target) as part:
                yield part
                write_checksums(part)
                if target.exists():
                    target.rename(replaced)
        finally:
            if replaced.exists() and not target.exists():  # the new one could not be moved into place
                replaced.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    def clean(self) -> None:
        """Remove what a killed process left; put back a checkpoint that it was about to replace."""
        remove_temporary(self.folder)
        for path in list(self.folder.iterdir()) if self.folder.is_dir() else []:
            match = REPLACED.fullmatch(path.name)
            if match and not (self.folder / match[1]).exists():
                path.rename(self.folder / match[1])
            elif match:
                shutil.rmtree(path)

    def discard_after(self, step: int) -> None:
        """Remove checkpoints of later steps: training comes by them again."""
        for path in self.all():
            if step_of(path) > step:
                shutil.rmtree(path)

    def prune(self, best: str | None) -> None:
        """Remove checkpoints that are neither the one named ``best`` nor among the last two."""
        for path in self.all()[:-KEPT]:
            if path.name != best:
                shutil.rmtree(path)

    def require_intact(self, name: str) -> None:
        """Raise ModelFileError unless a checkpoint is there and undamaged."""
        if not (self.folder / name).is_dir():
            raise ModelFileError(f"The checkpoint {self.folder / name} is missing.", hint="Use --resume.")
        verify_checksums(self.folder / name)

    def is_intact(self, name: str) -> bool:
        """Whether a checkpoint is there and undamaged."""
        try:
            self.require_intact(name)
        except (ModelFileError, OSError):
            return False
        return True

    def newest_intact(self, log: LogFn) -> Path | None:
        """The newest undamaged checkpoint; every damaged one that is passed over is logged.

        Raises ModelFileError if there are checkpoints and all are damaged.
        """
        every = self.all()
        for path in reversed(every):
            try:
                self.require_intact(path.name)
            except ModelFileError as error:
                log(f"{error.message} The checkpoint before it is used instead.")
            else:
                return path
        if every:
            raise ModelFileError(
                f"Every checkpoint in {self.folder} is damaged.",
                hint="Restore the folder from a copy, or train again with another --out.",
            )
        return None


def step_of(path: Path) -> int:
    """The number of steps done at a checkpoint."""
    match = STEP_FOLDER.fullmatch(path.name)
    return int(match[1]) if match else 0
