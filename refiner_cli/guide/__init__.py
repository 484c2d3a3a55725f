"""The user's guide: one Markdown page per task, beside this file; ``refiner guide PAGE`` shows one.

``python -m refiner_cli.cli.reference`` rewrites the generated parts of the pages: settings from the schema
of the configuration, commands from the Typer app.
"""

from __future__ import annotations

import re
from importlib import resources

PAGES = (  # in the order of reading
    "photos", "search", "labelling", "own-data", "few-photos", "sharing", "onnx", "benchmarks", "models",
    "results", "method", "many-machines", "python", "configuration", "commands", "output-and-exit-codes",
    "troubleshooting", "contributing",
)  # fmt: skip
MARKER = re.compile(r"^<!-- .* -->\n", re.M)


def page_text(name: str) -> str:
    """The Markdown of one of ``PAGES``, without the markers of generated parts."""
    text = resources.files("refiner_cli.guide").joinpath(f"{name}.md").read_text("utf-8")
    return MARKER.sub("", text)


def page_title(name: str) -> str:
    """The heading of a page."""
    return page_text(name).splitlines()[0].removeprefix("# ")
