"""The study: trials that are measured once, and tables that say what was measured."""

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.towers import tiny
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.data.benchmark import load_benchmark
from refiner_cli.demo.dataset import DemoSize, make_demo
from refiner_cli.demo.vocabulary import demo_split
from refiner_cli.errors import DatasetError
from refiner_cli.experiments.__main__ import STUDIES, argument_parser, by_training, main, planned
from refiner_cli.experiments.arguments import exit_with_sentence
from refiner_cli.experiments.folds import FOLD_PAIRS, MIN_LEFT, fold
from refiner_cli.experiments.plan import by_fold, by_holdout, make_backbone
from refiner_cli.experiments.pretrain_tiny import Recipe
from refiner_cli.experiments.tables import FOLD, HOLDOUT, TEST, study_text, tables
from refiner_cli.experiments.trial import FEASIBILITY_MODES, RESULT, Trial, run_trial, with_clutter
from refiner_cli.experiments.variants import ABLATIONS, AMOUNTS, METHODS, REFINER, Variant
from refiner_cli.training import provenance
from refiner_cli.training.run_dir import model_folder

SHORT = {"train.max_steps": 2, "train.epochs": 1, "train.batch_size": 8, "calibration.tta_shifts": (1,)}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = tmp_path_factory.mktemp("study")
    make_demo(folder / "data", 3, DemoSize(1, 1, 1))
    make_demo(folder / "clean", 3, DemoSize(1, 1, 1), clutter=0)
    variant = Variant("refiner", "Refiner", SHORT, feasibility=True)
    return Trial(folder / "refiner" / "3", variant, 3, folder / "data", {0: folder / "clean"})


def test_a_trial_is_measured_once_and_again_gives_the_same(trial: Trial) -> None:
    assert trial.found() is None
    first = run_trial(trial)
    assert set(first) == {"closed", "open", "clutter 0", *FEASIBILITY_MODES}
    assert 0 < first["closed"]["AUC"] < 100

    file = trial.folder / RESULT
    written = file.read_text("utf-8")
    assert run_trial(trial) == first
    # The test figures that are kept are read, not measured again: a changed one comes back as it is.
    content = json.loads(written)
    content["test"]["closed"]["AUC"] = -1.0
    file.write_text(json.dumps(content), "utf-8")
    assert run_trial(trial)["closed"]["AUC"] == -1.0

    again = dataclasses.replace(trial, folder=trial.folder.with_name("again"))
    assert run_trial(again) == first


def test_what_was_measured_of_something_else_is_not_taken(trial: Trial) -> None:
    run_trial(trial)
    other = dataclasses.replace(
        trial, variant=dataclasses.replace(trial.variant, settings={**SHORT, "model.queries_per_role": 1})
    )
    before = trial.found()
    assert before is not None
    assert other.found() is None
    assert run_trial(other) != before  # its run is not gone on with either
    assert other.found() is not None
    run_trial(trial)
    assert dataclasses.replace(trial, seed=4).found() is None


def test_what_another_version_or_other_weights_made_is_made_again(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"method": "clip", "calibration.tta_shifts": (1,), "calibration.hubness_strength": (0.0,)}
    small = dataclasses.replace(
        trial, variant=Variant("clip", "", settings), folder=tmp_path / "clip" / "3", clutter_tests={}
    )
    run_trial(small)

    def is_made_again() -> bool:
        mark = small.folder / "run" / "mark"  # goes with the training
        mark.touch()
        missing = small.found() is None
        run_trial(small)
        assert mark.exists() is not missing
        return missing and small.found() is not None

    assert not is_made_again()
    weights = tmp_path / "weights.safetensors"
    state = load_file(tiny.weights_path())
    save_file({name: v * 1.5 if v.is_floating_point() else v for name, v in state.items()}, weights)
    monkeypatch.setattr(tiny, "weights_path", lambda: weights)
    assert is_made_again()
    monkeypatch.setattr(provenance, "__version__", "99.0")
    assert is_made_again()


def test_another_calibration_trains_nothing_anew(trial: Trial) -> None:
    plain = run_trial(trial)
    files = {path: path.stat().st_mtime_ns for path in (trial.folder / "run").rglob("*.safetensors")}
    settings = {**SHORT, "calibration.hubness_strength": (1.0,)}
    other = dataclasses.replace(trial, variant=dataclasses.replace(trial.variant, settings=settings))
    assert other.found() is None
    found = run_trial(other)
    assert found != plain
    assert found == run_trial(dataclasses.replace(other, folder=trial.folder.with_name("afresh")))
    assert files == {path: path.stat().st_mtime_ns for path in (trial.folder / "run").rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("reads", "changes"),
    [
        ({"calibration.tta_shifts": (2,)}, True),
        ({"calibration.hubness_strength": (1.0,)}, True),
        ({"calibration.wise_ft_alpha": (0.5,)}, False),  # the best step is the first: no word is learned
    ],
)
def test_what_counts_outside_training_alone_is_measured_on_one_training(
    trial: Trial, reads: dict[str, Any], changes: bool
) -> None:
    run_trial(trial)
    base = dataclasses.replace(trial.variant, settings=SHORT, feasibility=False)
    shared = dataclasses.replace(
        trial,
        variant=Variant("shared", "", reads, of=base),
        folder=trial.folder.parents[1] / "shared" / "3",
        clutter_tests={},
    )
    own = dataclasses.replace(
        shared,
        variant=Variant("own", "", {**SHORT, **reads}),
        folder=trial.folder.parents[1] / "own" / "3",
    )
    assert shared.config() == own.config()
    found, plain = run_trial(shared), run_trial(trial)
    assert found == run_trial(own)
    assert (found != {world: plain[world] for world in ("closed", "open")}) is changes
    assert shared.trained().folder == trial.folder
    assert not (shared.folder / "run").exists()
    (own.folder / RESULT).unlink()  # the next setting's
    (shared.folder / RESULT).unlink()
    assert [len(together) for together in by_training([trial, shared, own])] == [2, 1]


def test_every_variant_differs_from_every_other() -> None:
    variants = [*METHODS, *ABLATIONS]
    nowhere = Path()
    made = [Trial(nowhere, variant, 0, nowhere).config().model_dump_json() for variant in variants]
    assert len(set(made)) == len(variants)


COMMAND = planned.__module__


def results(worse: float, priors: float = 0.0) -> dict[str, list[dict[str, dict[str, float]]]]:
    """Two seeds: Refiner at 50 and 60, everything else lower by ``worse`` and by twice as much."""
    found = {}
    clutter = [with_clutter(amount) for amount in AMOUNTS]
    for variant in [*METHODS, *ABLATIONS]:
        less = (0.0, 0.0) if variant.name == REFINER.name else (worse, 2 * worse)
        seeds = []
        for base, minus in zip((50.0, 60.0), less, strict=True):
            metrics = dict.fromkeys(("S", "U", "HM", "AUC"), base - minus)
            better = dict.fromkeys(("S", "U", "HM", "AUC"), base + priors)
            worlds = dict.fromkeys(["closed", "open", *clutter], metrics)
            seeds.append({**worlds, **dict.fromkeys(FEASIBILITY_MODES, better)})
        found[variant.name] = seeds
    return found


def test_the_tables_give_mean_deviation_and_the_lead_by_seed() -> None:
    text = tables(results(1.0, priors=3.0))
    lines = text.splitlines()
    # Of 50 and 60 the mean is 55 and the sample deviation sqrt(50); of the leads 1 and 2 it is sqrt(1/2).
    assert f"| Refiner | {' | '.join(['55.0 ± 7.1'] * 6)} |" in lines
    assert f"| Troika, equal terms | {' | '.join(['53.5 ± 6.4'] * 6)} |" in lines
    assert f"| Troika, equal terms | {' | '.join(['1.5 ± 0.7'] * 4)} |" in lines
    assert f"| soft | {' | '.join(['58.0 ± 7.1'] * 4)} |" in lines
    assert f"| none | {' | '.join(['55.0 ± 7.1'] * 4)} |" in lines


def test_without_the_trials_of_a_table_the_table_is_left_out() -> None:
    every = results(1.0)

    def of(*names: str) -> str:
        return tables({name: every[name] for name in names})

    text = of(*(variant.name for variant in METHODS))
    assert "### Methods" in text
    assert "### Feasibility" in text
    assert "### Parts" not in text
    assert "### Clutter" not in text
    assert "### Clutter" in of("refiner", "no-queries")
    assert "margin" not in of("troika", "no-queries")
    plain = {"refiner": [{"closed": found["closed"], "open": found["open"]} for found in every["refiner"]]}
    assert "### Feasibility" not in tables(plain)


def test_folds_and_holdouts_are_judged_together() -> None:
    parts = {TEST: results(5.0), FOLD: results(1.0), HOLDOUT: results(3.0)}
    text = study_text(parts)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        *(f"## {part}" for part in parts),
        "## Folds and other hold-outs together",
    ]
    # Refiner leads by 1 and 2 on folds and by 3 and 6 on hold-outs: mean 3, its error sqrt(14 / 3) / 2.
    together = text.rpartition("together")[2]
    assert f"| Troika, equal terms | {' | '.join(['3.0 ± 1.1'] * 4)} |" in together
    assert "without queries" in together
    for left_out in (TEST, FOLD, HOLDOUT):
        some = study_text({part: found for part, found in parts.items() if part != left_out})
        assert ("together" in some) is (left_out == TEST)


def test_a_study_of_which_no_part_is_named_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    for name in ("by_seed", "by_fold", "by_holdout"):
        part = Trial(Path(name), REFINER, 0, Path())
        monkeypatch.setattr(
            f"{COMMAND}.{name}", lambda *a, p=part: asked.update({str(p.folder): a[2]}) or [p]
        )
    parse = argument_parser().parse_args
    assert set(planned(parse(["--out", "x"]))) == {TEST, FOLD, HOLDOUT}
    assert asked == {"by_seed": 5, "by_fold": 4, "by_holdout": 3}
    assert set(planned(parse(["--out", "x", "--dataset", "y"]))) == {TEST, FOLD}
    assert set(planned(parse(["--out", "x", "--folds", "2", "--holdouts", "1"]))) == {FOLD, HOLDOUT}
    assert asked == {"by_seed": 5, "by_fold": 2, "by_holdout": 1}


def test_a_fold_holds_out_training_pairs_and_touches_nothing_else(trial: Trial) -> None:
    whole = load_benchmark(trial.data)
    parts = [fold(whole, number) for number in (0, 1)]
    assert fold(whole, 0) == parts[0] != parts[1]
    for part in parts:
        trained, measured = set(part.pairs["train"]), set(part.pairs["test"])
        assert trained | measured == set(whole.pairs["train"])
        assert 10 < len(measured - trained) <= FOLD_PAIRS
        assert len(measured & trained) == FOLD_PAIRS
        for i in (0, 1):  # states, objects
            left = Counter(pair[i] for pair in trained)
            assert all(left[pair[i]] >= MIN_LEFT for pair in measured)
        of = {split: {sample.path for sample in part.samples[split]} for split in ("train", "val", "test")}
        assert not of["train"] & of["test"]
        assert of["val"] == of["test"]
        assert of["train"] | of["test"] <= {sample.path for sample in whole.samples["train"]}
        assert {sample.pair for sample in part.samples["train"]} <= trained
        assert {sample.pair for sample in part.samples["test"]} <= measured
    first = whole.pairs["train"][:5]
    few = dataclasses.replace(
        whole,
        pairs={**whole.pairs, "train": first},
        samples={**whole.samples, "train": tuple(s for s in whole.samples["train"] if s.pair in first)},
    )
    with pytest.raises(DatasetError, match="too small to hold out"):
        fold(few, 0)


def test_a_trial_of_a_fold_is_measured_on_it(trial: Trial, tmp_path: Path) -> None:
    variant = dataclasses.replace(trial.variant, feasibility=False)
    trials = by_fold(tmp_path, [variant], 2, trial.data)
    first, second = (run_trial(c) for c in trials)
    assert set(first) == {"closed", "open"}
    assert first != second
    assert dataclasses.replace(trials[0], fold=1).found() is None


def test_on_a_fold_too_a_variant_has_the_training_that_it_shares(trial: Trial, tmp_path: Path) -> None:
    one_view = next(variant for variant in ABLATIONS if variant.name == "one-view")
    whole, other = by_fold(tmp_path, [REFINER, one_view], 1, trial.data)
    assert other.trained().config() == whole.config() != other.config()
    assert other.config().train.epochs == whole.config().train.epochs > trial.config().train.epochs
    assert by_training([whole, other]) == [[whole, other]]


def test_a_trial_of_a_holdout_is_measured_on_other_pairs_with_a_backbone_of_its_own(
    tmp_path: Path,
) -> None:
    make_demo(tmp_path / "data" / "seed-1", 1, DemoSize(1, 1, 1), holdout=1)
    file = tmp_path / "backbones" / "tiny-1.safetensors"
    make_backbone(file, Recipe(images=500, steps=1, batch=4, probed=2, holdout=1))
    variant = Variant("refiner", "Refiner", SHORT)
    (trial,) = by_holdout(tmp_path, [variant], 1, workers=1)
    assert trial.backbone == file
    assert trial.benchmark().pairs["train"] == demo_split(1).train != demo_split().train
    run_trial(trial)
    used = read_model(model_folder(trial.folder / "run"))[0].backbone.fingerprint()
    assert used == load_backbone("tiny", str(file)).fingerprint() != load_backbone("tiny", "").fingerprint()
    assert trial.found() is not None
    make_backbone(file, Recipe(images=500, steps=1, batch=4, probed=2, holdout=2))
    assert trial.found() is None  # it was measured with other weights


def test_the_command_measures_in_processes_of_its_own_and_goes_on(small_demo: Path, tmp_path: Path) -> None:
    def study(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "refiner_cli.experiments", "--out", str(tmp_path), *more]
        command += ["--dataset", str(small_demo), "--workers", "1", "--variants", "clip"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)

    first, again = study("--seeds", "1"), study("--seeds", "1")
    assert first.returncode == 0, first.stderr
    assert "1/1 clip seed 0: closed AUC" in first.stderr
    assert "| CLIP zero-shot |" in first.stdout
    assert again.stdout == first.stdout
    assert (tmp_path / "study.md").read_text("utf-8") == first.stdout.removesuffix("\n")

    wrong = study("--holdouts", "2")
    assert wrong.returncode == 2
    assert "--holdouts are lists of the demo benchmark" in wrong.stderr


@pytest.mark.parametrize(
    ("study", "arguments", "code", "says"),
    [
        ("warm-start", ["--dataset", "gone"], 3, "Error: The dataset folder gone does not exist."),
        ("", ["--dataset", "gone"], 3, "Error: The dataset folder gone does not exist."),
        ("", ["--seeds", "-1"], 2, "'-1' is not a whole number from 1 on"),
        ("few-shot", ["--no-demo"], 2, "--no-demo leaves nothing to study"),
    ],
)
def test_a_study_that_cannot_be_made_ends_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], study: str, arguments: list[str], code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as left, exit_with_sentence():
        STUDIES.get(study, main)([*arguments, "--out", str(tmp_path / "out")])
    assert left.value.code == code
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
