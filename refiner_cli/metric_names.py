"""The metrics of an evaluation: their names in the order papers print them, and how a value is written.

This module knows no arithmetic, so that the command line can read it without NumPy or PyTorch.
"""

from __future__ import annotations

HEADLINE_METRICS = ("S", "U", "HM", "AUC")
METRIC_NAMES = (*HEADLINE_METRICS, "state_acc", "object_acc")
UNDEFINED = "-"  # in the cell of a table


def format_metric(value: float | None) -> str:
    """A percentage with one decimal; None (undefined) as a dash."""
    return UNDEFINED if value is None else f"{value:.1f}"
