"""The work of ``refiner reproduce``: download, estimate, train and evaluate job by job, write the tables."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refiner_cli.cli import download_view
from refiner_cli.cli.configure import configure
from refiner_cli.cli.console import new_table, terminal
from refiner_cli.cli.download import check_datasets_dir, downloader_for
from refiner_cli.cli.signals import StopRequest, stop_on_signal
from refiner_cli.data.disk import format_size

if TYPE_CHECKING:
    from refiner_cli.config import Config
    from refiner_cli.data.benchmark import Benchmark
    from refiner_cli.data.download.catalog import Dataset
    from refiner_cli.data.download.downloader import Downloader
    from refiner_cli.evaluation.feasibility.feasibility import FeasibilityMode
    from refiner_cli.reproduction.estimate import JobEstimate
    from refiner_cli.reproduction.job import ReproductionJob

PLAN_SCHEMA = "refiner.reproduce-plan/1"
GLOVE, GLOVE_FILE = "glove", "glove.6B.300d.txt"  # of the catalogue


@dataclass(frozen=True)
class ReproduceRequest:
    """One ``refiner reproduce`` command."""

    benchmark: str
    methods: tuple[str, ...]
    seeds: int
    out: Path
    data: Path | None
    feasibility: FeasibilityMode
    glove: bool
    flags: Mapping[str, Any]
    assignments: tuple[str, ...]
    workers: int

    def configs(self) -> dict[str, Config]:
        """By method: its recipe for the benchmark, with what the command changes."""
        return {
            method: configure(self.benchmark, None, self.assignments, {"method": method, **self.flags})[0]
            for method in self.methods
        }

    def seeded(self, config: Config) -> list[Config]:
        return [config.model_copy(update={"seed": config.seed + number}) for number in range(self.seeds)]

    def folder(self, config: Config) -> Path:
        return self.out / config.method / f"seed-{config.seed}"


def run_reproduction(request: ReproduceRequest, *, dry_run: bool, as_json: bool) -> int:
    """Do it, or show what would be done; return the exit code."""
    configs = request.configs()
    with terminal.report() as report:
        downloader = downloader_for(request.data, request.workers, report)
        datasets = [downloader.catalogue.find(request.benchmark)]
        if request.glove:
            datasets.append(downloader.catalogue.find(GLOVE))
        if not dry_run:
            if not all(map(downloader.is_ready, datasets)):
                check_datasets_dir(request.data, downloader, "--data")
            downloader.download(datasets)
    if dry_run:
        show_dry_run(request, configs, downloader, datasets, as_json=as_json)
        return 0
    with stop_on_signal(terminal.note) as stop:
        return carry_out(request, configs, downloader, datasets, stop, as_json=as_json)


def carry_out(
    request: ReproduceRequest,
    configs: Mapping[str, Config],
    downloader: Downloader,
    datasets: Sequence[Dataset],
    stop: StopRequest,
    *,
    as_json: bool,
) -> int:
    """Train and evaluate what is missing, then write the tables."""
    from refiner_cli.data.benchmark import load_benchmark
    from refiner_cli.reproduction.table import markdown

    benchmark = load_benchmark(downloader.place.folder(datasets[0]), request.benchmark)
    vectors = downloader.place.folder(datasets[1]) / GLOVE_FILE if request.glove else None
    jobs = jobs_of(request, configs, benchmark, vectors)
    missing = [job.config for job in jobs if job.stored() is None]
    if missing:
        show_estimates(estimates(configs, missing, benchmark, datasets[0]), missing)
    for number, job in enumerate(jobs, 1):
        if job.stored() is None:
            terminal.note(f"{job.config.method}, seed {job.config.seed}: {number} of {len(jobs)}")
            if not finish_job(job, stop):
                terminal.note("Stopped; the same command resumes.")
                return stop.exit_code
    results = [result for job in jobs if (result := job.stored()) is not None]
    report = report_of(request, benchmark, vectors, results, downloader, datasets)
    write_reproduction(request.out, report)
    if as_json:
        terminal.json(report)
    else:
        terminal.markdown(markdown(report))
        terminal.note(f"results: {request.out / 'results.json'} and {request.out / 'results.md'}")
    return 0


def write_reproduction(out: Path, report: dict[str, Any]) -> None:
    """Write both files. What the report names, a command above all, need not be UTF-8."""
    from refiner_cli.files import atomic_file, write_json
    from refiner_cli.reproduction.table import markdown

    write_json(out / "results.json", report)
    with atomic_file(out / "results.md") as part:
        part.write_text(markdown(report), "utf-8", errors="backslashreplace")


def jobs_of(
    request: ReproduceRequest, configs: Mapping[str, Config], benchmark: Benchmark, vectors: Path | None
) -> list[ReproductionJob]:
    """All methods of a seed come before the next seed, so that an early stop leaves a comparison."""
    from refiner_cli.reproduction.job import ReproductionJob

    rows = zip(*map(request.seeded, configs.values()), strict=True)
    return [
        ReproductionJob(request.folder(config), config, benchmark, request.feasibility, vectors)
        for row in rows
        for config in row
    ]


def finish_job(job: ReproductionJob, stop: StopRequest) -> bool:
    """Train and evaluate one job; False: it was stopped before the end, with its state saved."""
    from refiner_cli.cli.evaluation import date_and_command
    from refiner_cli.cli.training_view import fit_with_progress
    from refiner_cli.training.trainer import StopRequestedError

    if fit_with_progress(job.trainer(terminal.note, sys.argv), stop)["interrupted"]:
        return False
    with terminal.progress("evaluating") as progress:

        def follow(done: int, total: int) -> None:
            progress(done, total)
            if stop():
                raise StopRequestedError

        try:
            job.evaluate(date_and_command(), terminal.note, follow)
        except StopRequestedError:
            return False
    return True


def report_of(
    request: ReproduceRequest,
    benchmark: Benchmark,
    vectors: Path | None,
    results: Sequence[dict[str, Any]],
    downloader: Downloader,
    datasets: Sequence[Dataset],
) -> dict[str, Any]:
    """Everything that was found, and what it depends on: nothing of the command that asks for it again."""
    from refiner_cli.core.model_io.zero_shot import backbone_text
    from refiner_cli.reproduction.table import SCHEMA, summary_rows

    settings = results[0]["determinants"]["settings"]
    backbone = backbone_text(settings["backbone"], settings["pretrained"])
    return {
        "schema": SCHEMA,
        "benchmark": request.benchmark,
        "seeds": request.seeds,
        "feasibility": request.feasibility,
        "backbone": f"{backbone}, {results[0]['backbone']}",
        "vectors": vectors.name if vectors else "text tower",
        "summary": summary_rows(results, request.benchmark, request.feasibility),
        "runs": list(results),
        "dataset": {
            "path": str(benchmark.root.resolve()),
            "fingerprint": benchmark.fingerprint(),
            "archives": downloader.pins(datasets),
        },
    }


def estimates(
    configs: Mapping[str, Config], wanted: Sequence[Config], benchmark: Benchmark | None, dataset: Dataset
) -> dict[str, JobEstimate]:
    """By method that still has something to do. Without the benchmark, with made-up pairs of its size."""
    from refiner_cli.bench.spaces import label_space
    from refiner_cli.reproduction.estimate import ImageCounts, estimate_job

    if benchmark is None:
        space, expected = label_space(dataset.name), dataset.expected
        numbers = (expected.train_images, expected.val_images, expected.test_images)
        counts = ImageCounts(*(number or 0 for number in numbers))
    else:
        space = benchmark.label_space("train").training()
        train, val, test = (len(benchmark.samples[split]) for split in ("train", "val", "test"))
        counts = ImageCounts(train, val, test)
    found: dict[str, JobEstimate] = {}
    for method in dict.fromkeys(config.method for config in wanted):
        config = configs[method]
        terminal.note(f"estimating {method} with a few noise images")
        found[method] = estimate_job(config, space, counts, terminal.note)
    return found


def show_estimates(found: Mapping[str, JobEstimate], wanted: Sequence[Config]) -> None:
    """A line per method and the sum."""
    total = 0.0
    for method, estimate in found.items():
        runs = sum(config.method == method for config in wanted)
        total += runs * estimate.seconds
        memory = f", peak about {format_size(estimate.peak_bytes)}" if estimate.peak_bytes else ""
        terminal.note(
            f"{method}: {runs} runs of {estimate.steps:,} steps, each about "
            f"{duration_text(estimate.train_seconds)} of training and "
            f"{duration_text(estimate.evaluation_seconds)} of evaluation{memory}"
        )
    terminal.note(f"in all about {duration_text(total)}")


def duration_text(seconds: float) -> str:
    """``"4.2 h"``, ``"12 min"`` or ``"30 s"``."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def show_dry_run(
    request: ReproduceRequest,
    configs: Mapping[str, Config],
    downloader: Downloader,
    datasets: Sequence[Dataset],
    *,
    as_json: bool,
) -> None:
    """What would be fetched and trained, and how long it takes.

    A result counts as there if it is of these settings and data; without the data none does.
    """
    from refiner_cli.data.benchmark import load_benchmark

    folder = downloader.place.folder(datasets[0])
    benchmark = load_benchmark(folder, request.benchmark) if folder.is_dir() else None
    vectors = downloader.place.folder(datasets[1]) / GLOVE_FILE if request.glove else None
    if benchmark is None:
        wanted = [config for plain in configs.values() for config in request.seeded(plain)]
    else:
        jobs = jobs_of(request, configs, benchmark, vectors)
        wanted = [job.config for job in jobs if job.stored() is None]
    found = estimates(configs, wanted, benchmark, datasets[0])
    if not as_json:
        download_view.show_plan(downloader, datasets, as_json=False)
        table = new_table(
            f"To train and evaluate in {request.out}",
            "method", "runs", "steps", "training", "evaluation", "peak memory",
        )  # fmt: skip
        for method, estimate in found.items():
            peak = format_size(estimate.peak_bytes) if estimate.peak_bytes else ""
            runs = sum(config.method == method for config in wanted)
            table.add_row(
                method, str(runs), f"{estimate.steps:,}", duration_text(estimate.train_seconds),
                duration_text(estimate.evaluation_seconds), peak,
            )  # fmt: skip
        terminal.table(table)
    total = sum(found[config.method].seconds for config in wanted)
    if not as_json:
        terminal.data(f"In all about {duration_text(total)}. Nothing was fetched or trained.")
        return
    files = [
        {
            "file": file.source.file,
            "dataset": file.dataset.name,
            "bytes": file.size,
            "fetched_bytes": file.have,
        }
        for file in downloader.plan(datasets)
    ]
    methods = [
        {"method": name, "runs": sum(config.method == name for config in wanted), **estimate.to_json()}
        for name, estimate in found.items()
    ]
    terminal.json({"schema": PLAN_SCHEMA, "benchmark": request.benchmark, "out": str(request.out),
                   "files": files, "methods": methods, "seconds": round(total, 1)})  # fmt: skip
