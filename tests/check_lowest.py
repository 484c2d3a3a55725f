"""Run the tests on the lowest versions that pyproject.toml allows.

Command: ``python -m tests.check_lowest [--keep DIR] [PYTEST ARGUMENT]...``

Slow and not part of ``.ci/run``: it installs every dependency of the package and of its extras at its lower
bound into a fresh environment (some gigabytes: old releases of torch bring their CUDA libraries).
``--keep DIR`` keeps the environment there and uses it again while the bounds stay the same.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def lowest(requirement: str) -> str:
    """``"timm==1.0.16"`` for ``"timm>=1.0.16"``. Raises ValueError where there is no lower bound."""
    found = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement)
    if not found:
        raise ValueError(f"{requirement!r} has no lower bound")
    return f"{found[1]}=={found[2]}"


def project() -> dict[str, Any]:
    """The project's table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def bounds() -> list[str]:
    """Every dependency of the package and of the extras that users install, at its lower bound."""
    extras = project()["optional-dependencies"]
    found = [
        *project()["dependencies"],
        *(n for extra, names in extras.items() if extra != "dev" for n in names),
    ]
    return [lowest(requirement) for requirement in found]


def prepare(folder: Path) -> Path:
    """An environment with the lowest versions; returns its Python."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pins, stamp = "\n".join(bounds()) + "\n", folder / "lowest.txt"
    if not (stamp.exists() and stamp.read_text("utf-8") == pins):
        venv.create(folder, clear=True, with_pip=True)
        extras = ",".join(project()["optional-dependencies"])
        pinned = folder / "pins.txt"
        pinned.write_text(pins, "utf-8")
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "-c", pinned, "-e", f"{ROOT}[{extras}]"], check=True
        )
        pinned.rename(stamp)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, help="keep the environment in this folder")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        python = prepare(options.keep or Path(folder))
        return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
