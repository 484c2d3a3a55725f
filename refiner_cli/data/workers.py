"""What all processes that decode images need at their start. Imports neither torch nor numpy."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection


def init_worker() -> None:
    """In a worker process: ignore SIGINT, and exit when the parent does, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: connection.wait([sentinel]) and os._exit(1), daemon=True).start()
