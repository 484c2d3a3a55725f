"""``refiner`` and ``python -m refiner_cli``: run the app, turn errors into one sentence and an exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refiner_cli.errors import RefinerError


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves through SystemExit."""
    # Before torch is imported: its threads wait for each other spinning for some microseconds and then sleep.
    # By default they spin on, and beside other programs a step of the tiny backbone takes four times as long;
    # sleeping at once makes a step a fifth slower on an idle machine.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    from refiner_cli.cli.app import app
    from refiner_cli.cli.console import terminal
    from refiner_cli.errors import RefinerError, UsageError

    # Any system's output is UTF-8, and a name that is not UTF-8 is escaped instead of ending the program.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if "" in (sys.argv[1:] if arguments is None else arguments):
            raise UsageError("An argument is empty.", hint="Is a variable of the shell not set?")
        try:
            app(arguments, prog_name="refiner")
        except Exception:
            let_children_end()
            raise
    except RefinerError as error:
        if terminal.debug:
            raise
        terminal.error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if terminal.debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        kind = UsageError if error.errno == errno.ENAMETOOLONG else RefinerError
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = "Free some space, then run the same command again: what is complete is kept." if full else ""
        terminal.error(kind(f"The system refused: {error.strerror or error}{place}.", hint=hint))
        sys.exit(kind.exit_code)
    except (RuntimeError, MemoryError) as error:
        found = None if terminal.debug else known_failure(error)
        if found is None:
            raise
        terminal.error(found)
        sys.exit(found.exit_code)


def known_failure(error: RuntimeError | MemoryError) -> RefinerError | None:
    """The sentence where memory ends or a process dies, which PyTorch tells; None for any other error."""
    from refiner_cli.core.runtime.loader import worker_ended
    from refiner_cli.core.runtime.memory import is_out_of_memory
    from refiner_cli.errors import RefinerError

    if is_out_of_memory(error):
        return RefinerError(
            "There is not enough memory.", hint="Use a smaller --batch or a smaller backbone."
        )
    # torch's signal handler speaks wherever the main thread is
    return worker_ended(error) if "DataLoader worker" in str(error) else None


def let_children_end() -> None:
    """Silence torch's signal handler: after one decoding process died it raises for every child that ends."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


if __name__ == "__main__":
    main()
