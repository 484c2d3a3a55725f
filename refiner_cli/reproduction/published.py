"""Figures as papers print them, all with CLIP ViT-L/14: S, U, HM and AUC in percent.

They follow the published evaluator, protocol ``legacy``. The open world is masked by feasibility there.
"""

from __future__ import annotations

from dataclasses import dataclass

BENCHMARKS = ("mit-states", "ut-zappos", "c-gqa")
Figures = tuple[float, float, float, float]  # S, U, HM, AUC


@dataclass(frozen=True)
class PublishedMethod:
    """One row of a paper's tables."""

    name: str
    method: str  # as refiner calls it; "": it has none
    source: str
    closed: dict[str, Figures]  # by benchmark
    open: dict[str, Figures]

    def figures(self, benchmark: str, world: str) -> Figures | None:
        return (self.closed if world == "closed" else self.open).get(benchmark)


def by_benchmark(mit: Figures | None, zappos: Figures | None, c_gqa: Figures | None) -> dict[str, Figures]:
    found = zip(BENCHMARKS, (mit, zappos, c_gqa), strict=True)
    return {name: figures for name, figures in found if figures}


CSP_PAPER = "Nayak et al., ICLR 2023, arXiv 2204.03574"
TROIKA_PAPER = "Huang et al., CVPR 2024, arXiv 2303.15230"
PUBLISHED = (
    PublishedMethod(
        "CLIP zero-shot",
        "clip",
        CSP_PAPER,
        by_benchmark((30.2, 46.0, 26.1, 11.0), (15.8, 49.1, 15.6, 5.0), (7.5, 25.0, 8.6, 1.4)),
        by_benchmark((30.1, 14.3, 12.8, 3.0), (15.7, 20.6, 11.2, 2.2), (7.5, 4.6, 4.0, 0.3)),
    ),
    PublishedMethod(
        "CoOp",
        "coop",
        CSP_PAPER,
        by_benchmark((34.4, 47.6, 29.8, 13.5), (52.1, 49.3, 34.6, 18.8), (20.5, 26.8, 17.1, 4.4)),
        {},
    ),
    PublishedMethod(
        "CSP",
        "csp",
        CSP_PAPER,
        by_benchmark((46.6, 49.9, 36.3, 19.4), (64.2, 66.2, 46.6, 33.0), (28.8, 26.8, 20.5, 6.2)),
        by_benchmark((46.3, 15.7, 17.4, 5.7), (64.1, 44.1, 38.9, 22.7), (28.7, 5.2, 6.9, 1.2)),
    ),
    PublishedMethod(
        "Troika",
        "troika",
        TROIKA_PAPER,
        by_benchmark((49.0, 53.0, 39.3, 22.1), (66.8, 73.8, 54.6, 41.7), (41.0, 35.7, 29.4, 12.4)),
        by_benchmark((48.8, 18.7, 20.1, 7.2), (66.4, 61.2, 47.8, 33.0), (40.8, 7.9, 10.9, 2.7)),
    ),
    PublishedMethod(
        "ClusPro",
        "",
        "ICLR 2025",
        by_benchmark((52.1, 54.0, 40.7, 23.8), (70.7, 76.0, 58.5, 46.6), (44.3, 37.8, 32.8, 14.9)),
        by_benchmark((51.2, 22.1, 23.0, 9.3), (71.0, 66.2, 54.1, 39.5), (41.6, 8.3, 11.6, 3.0)),
    ),
    PublishedMethod(
        "CAMS",
        "",
        "2025",
        by_benchmark((53.0, 54.3, 41.0, 24.2), (71.6, 76.6, 58.5, 47.4), (46.7, 42.1, 36.4, 17.4)),
        by_benchmark((50.9, 22.3, 22.8, 9.1), (71.2, 66.4, 54.5, 40.3), (46.2, 11.7, 15.3, 4.8)),
    ),
)


def published_row(method: str) -> PublishedMethod | None:
    """The published row of a method that refiner has."""
    return next((row for row in PUBLISHED if row.method == method), None)
