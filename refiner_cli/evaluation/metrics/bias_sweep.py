"""The seen-unseen sweep: from the summary of N images to S, U, HM and AUC. NumPy only, O(N) memory.

A bias ``b`` is added to the score of every unseen pair. From minus to plus infinity it moves the
prediction of each image once at most, from its best seen to its best unseen candidate. So an image
whose truth is seen is right below one breakpoint, an image whose truth is unseen is right above one,
and two sorted lists of breakpoints say everything about every bias.

``exact``
    A *step curve*: seen accuracy against unseen accuracy, at every bias. AUC is the area under it,
    HM the largest harmonic mean on it. The reported bias is the middle of the (first) interval of
    biases that reach that HM.

    Ties: **a tie is never a win.** An image is right only where its truth scores strictly more than
    every other candidate, and its state (object) is right only if all candidates that share the best
    score have the true state (object). Where an image is lost and another one won at the same bias,
    the curve goes down before it goes right. Neither the order of the candidates nor the order of
    the images has any influence. Differences are taken in float64, where they are exact for float32
    scores of similar size.

``legacy``
    The published sample of about 20 points, with trapezoids between them; see
    :mod:`refiner_cli.evaluation.metrics.legacy`.

Every accuracy is in percent. **The accuracy of no images is undefined, not 0**: without images of unseen
pairs there is no U, without images of seen pairs no S, and without either no HM, no AUC and no bias. The
biases of ``legacy`` are taken from images of unseen pairs, so it has no S without them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refiner_cli.data.labels import BoolArray, LabelSpace
from refiner_cli.evaluation.metrics.legacy import legacy_curve, legacy_predictions
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.metrics.seen_unseen import SeenUnseenCurve, SweepProtocol, step_curve
from refiner_cli.metric_names import METRIC_NAMES


@dataclass(frozen=True)
class Metrics:
    """One table row: S, U, HM, AUC, state and object accuracy in percent, the bias of HM, image counts.

    None is undefined; see :meth:`undefined`. ``ties`` counts images whose best score is shared by several
    candidates: more than a few mean that scores were rounded (half precision) before they came here.
    """

    S: float | None
    U: float | None
    HM: float | None
    AUC: float | None
    state_acc: float | None
    object_acc: float | None
    bias: float | None
    n_seen: int
    n_unseen: int
    ties: int = 0

    @classmethod
    def of_no_images(cls) -> Metrics:
        """Everything is undefined."""
        return cls(None, None, None, None, None, None, None, 0, 0)

    def to_json(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def undefined(self) -> dict[str, str]:
        """The metrics that are undefined, each with the reason."""
        without = [side for side, n in (("seen", self.n_seen), ("unseen", self.n_unseen)) if n == 0]
        reason = f"no image of {' or '.join(without)} pairs"
        return {name: reason for name in METRIC_NAMES if getattr(self, name) is None}

    def undefined_text(self) -> str:
        """The same as a sentence; empty if everything is defined."""
        undefined = self.undefined()
        reason = next(iter(undefined.values()), "")
        return f"{', '.join(undefined)} undefined, as the split has {reason}." if undefined else ""

    def selection_metric(self) -> tuple[str, float]:
        """Name and value of the metric to choose models or settings by.

        It is the first defined one of AUC, HM, S, U and state accuracy. Which one that is depends on the
        images alone, so candidates that are measured on the same images are comparable.
        """
        for name in ("AUC", "HM", "S", "U"):
            value: float | None = getattr(self, name)
            if value is not None:
                return name, value
        return "state_acc", self.state_acc or 0.0


def sweep(summary: ScoreSummary, space: LabelSpace, protocol: SweepProtocol = "exact") -> Metrics:
    """All scalar metrics of one split in one world.

    Args:
        summary: N images, as a ``ScoreStream`` over ``space`` gives it.
        space: the candidates that the summary's indices point into.
        protocol: see the module's text.
    """
    points = seen_unseen_curve(summary, protocol)
    has_seen = points.n_seen > 0 and (protocol == "exact" or points.n_unseen > 0)
    top = summary.predictions() if protocol == "exact" else legacy_predictions(summary)
    state = space.pair_state[top] == space.pair_state[summary.truth]
    obj = space.pair_object[top] == space.pair_object[summary.truth]
    if protocol == "exact":
        state, obj = state & ~summary.state_tied, obj & ~summary.object_tied
    return Metrics(
        S=float(points.seen.max()) if has_seen else None,
        U=float(points.unseen.max()) if points.n_unseen else None,
        HM=float(points.harmonic.max()) if points.is_defined else None,
        AUC=points.area,
        state_acc=_accuracy(state),
        object_acc=_accuracy(obj),
        bias=points.best_bias,
        n_seen=points.n_seen,
        n_unseen=points.n_unseen,
        ties=int(np.count_nonzero(summary.state_tied | summary.object_tied)),
    )


def seen_unseen_curve(summary: ScoreSummary, protocol: SweepProtocol = "exact") -> SeenUnseenCurve:
    """Every operating point (exact), or the published sample of them (legacy)."""
    if protocol == "exact":
        return step_curve(summary.breakpoints(), summary.truth_seen)
    return legacy_curve(summary)


def _accuracy(right: BoolArray) -> float:
    """Share of right images, in percent."""
    return float(100.0 * np.count_nonzero(right) / len(right))
