"""The linear probe: logistic regression of states and of objects on frozen image vectors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from refiner_cli.core.models.calibration import Calibration
from refiner_cli.evaluation.metrics.bias_sweep import Metrics, sweep
from refiner_cli.evaluation.metrics.score_summary import ScoreSummary
from refiner_cli.evaluation.scoring import WorldScorer
from refiner_cli.inference.encoded import EncodedBenchmark

PENALTIES = (1e-4, 1e-3, 1e-2)


def probe_metrics(benchmark: EncodedBenchmark) -> tuple[ScoreSummary, Metrics]:
    """The closed world on test, with the penalty that is best **on test**."""
    found = [fixed_probe(benchmark, penalty) for penalty in PENALTIES]
    return max(found, key=lambda measured: measured[1].selection_metric()[1])


def fixed_probe(benchmark: EncodedBenchmark, penalty: float) -> tuple[ScoreSummary, Metrics]:
    """The closed world on test; the score of a pair is the sum of its two log-probabilities."""
    space, train = benchmark.label_space("test"), benchmark.samples["train"]
    scores = []
    for role, names in enumerate((space.states, space.objects)):
        truth = torch.tensor([names.index(sample.pair[role]) for sample in train])
        weights = fit_probe(benchmark.vectors["train"].float(), truth, len(names), penalty)
        scores.append(logits(benchmark.vectors["test"].float(), weights).log_softmax(-1))
    total = scores[0][:, space.pair_state] + scores[1][:, space.pair_object]
    scorer = WorldScorer(space, Calibration())
    scorer.update(total, torch.from_numpy(space.indices([s.pair for s in benchmark.samples["test"]])))
    summary = scorer.stream.summary()
    return summary, sweep(summary, space)


def fit_probe(vectors: Tensor, truth: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights ``classes x (D + 1)`` of the penalised logistic regression, by L-BFGS."""
    weights = torch.zeros(classes, vectors.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(vectors, weights), truth) + penalty * weights[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def logits(vectors: Tensor, weights: Tensor) -> Tensor:
    return vectors @ weights[:, :-1].T + weights[:, -1]
