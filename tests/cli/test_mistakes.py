"""A mistake costs one sentence with the right exit code; nothing is created, and nothing is lost."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from PIL import Image
from typer.models import ArgumentInfo

from refiner_cli.__main__ import main
from refiner_cli.cli.reference import all_commands, parameters
from tests.cli.mistakes import MISTAKES, prepare, snapshot
from tests.conftest import Cli, Outcome

# Every option and argument that names what is written: a command with inputs that do not exist, and the
# ending of the file; "" for a folder. The place is refused before the inputs are looked at.
OUTPUTS = {
    "demo out": ("demo --out {}", ""),
    "download out": ("download demo --out {}", ""),
    "train out": ("train gone --out {}", ""),
    "reproduce out": ("reproduce mit-states --method clip --out {}", ""),
    "reproduce data": ("reproduce mit-states --method clip --data {}", ""),
    "eval save_scores": ("eval gone --world closed --save-scores {}", ".npz"),
    "eval per_image": ("eval gone --per-image {}", ".jsonl"),
    "eval report": ("eval gone --report {}", ".html"),
    "predict out": ("predict gone photos -o {}", ".csv"),
    "predict gallery": ("predict gone photos -o rows.csv --gallery {}", ".html"),
    "predict heatmaps": ("predict gone photos -o rows.csv --heatmaps {}", ""),
    "predict keep_index": ("predict gone photos -o rows.csv --keep-index {}", ""),
    "index out": ("index gone photos -o {}", ""),
    "merge out": ("merge gone -o {}", ".csv"),
    "search gallery": ("search gone query --gallery {}", ".html"),
    "suggest out": ("suggest gone -o {}", ".jsonl"),
    "suggest gallery": ("suggest gone --gallery {}", ".html"),
    "convert out": ("convert gone --to megadetector -o {}", ".json"),
    "export folder": ("export gone {}", ""),
    "info page": ("info gone --html {}", ".html"),
    "dataset create out": ("dataset create gone --out {}", ""),
}
# Every option and argument that names what is read: a command in which it alone is not there.
INPUTS = {
    "download from_archive": "download demo --from-archive {}",
    "train dataset": "train ./{} --backbone tiny",
    "train labels": "train index --labels {}",
    "train init": "train data --init ./{}",
    "train config": "train data --config {}",
    "train moved": "train --resume --out run --dataset ./{}",
    "eval model": "eval {}",
    "eval dataset": "eval run --dataset ./{}",
    "eval feasibility_vectors": "eval run --world open --feasibility mask --feasibility-vectors {}",
    "eval scores": "eval --scores {}",
    "compare runs": "compare run {}",
    "calibrate run": "calibrate {}",
    "calibrate dataset": "calibrate run --dataset ./{}",
    "predict model": "predict {} photos",
    "predict paths": "predict run photos {}",
    "predict states": "predict run photos --states {} --objects objects.txt",
    "predict objects": "predict run photos --states states.txt --objects {}",
    "predict pairs": "predict run photos --pairs {}",
    "predict boxes": "predict run photos --boxes {}",
    "index model": "index {} photos -o new",
    "index paths": "index run {} -o new",
    "merge folder": "merge {} -o rows.csv",
    "search index": "search {} query",
    "search model": "search index query --model {}",
    "search like": "search index --like {}",
    "suggest index": "suggest {}",
    "suggest labelled": "suggest index --states states.txt --objects objects.txt --labelled {}",
    "suggest model": "suggest index --model {}",
    "suggest states": "suggest index --states {} --objects objects.txt",
    "suggest objects": "suggest index --states states.txt --objects {}",
    "suggest pairs": "suggest index --pairs {}",
    "convert answers": "convert {} --to csv -o new.csv",
    "convert images": "convert rows.jsonl --to csv -o new.csv --images {}",
    "convert states": "convert rows.jsonl --to label-studio -o new --states {}",
    "convert objects": "convert rows.jsonl --to label-studio -o new --objects {}",
    "convert labels": "convert rows.jsonl --to cleanlab -o new.npz --labels {}",
    "convert boxes": "convert rows.jsonl --to megadetector -o new.json --boxes {}",
    "export run": "export {} new",
    "export states": "export run new --format onnx --states {} --objects objects.txt",
    "export objects": "export run new --format onnx --states states.txt --objects {}",
    "export pairs": "export run new --format onnx --pairs {}",
    "export check_images": "export run new --format onnx --check-images {}",
    "export evaluation": "export run new --eval {}",
    "info what": "info ./{}",
    "runs folder": "runs {}",
    "bench splits": "bench text --splits {}",
    "dataset create source": "dataset create {} --out new",
    "dataset create unseen_pairs": "dataset create sorted --out new --unseen-pairs {}",
    "dataset create images": "dataset create table.csv --out new --images {}",
    "dataset check dataset": "dataset check ./{}",
}
COMMANDS = {name.removeprefix("refiner").strip(): function for name, function in all_commands()}


@pytest.fixture
def place(
    tmp_path: Path, small_demo: Path, small_run: Path, small_export: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    prepare(folder, small_demo, small_run, small_export)
    monkeypatch.chdir(folder)
    return folder


def check(outcome: Outcome, code: int, says: str) -> None:
    """One sentence, the right code, nothing on stdout, no traceback."""
    errors = [line for line in outcome.err.splitlines() if line.startswith("Error")]
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    assert says in outcome.err
    if says:
        assert len(errors) == 1, outcome.err
        assert outcome.out == ""


NAMES = [row[0] or "nothing" for row in MISTAKES]


@pytest.mark.parametrize(("arguments", "code", "says"), MISTAKES, ids=NAMES)
def test_a_mistake_is_one_sentence(
    cli: Cli, place: Path, small_demo: Path, small_run: Path, small_export: Path,
    arguments: str, code: int, says: str,
) -> None:  # fmt: skip
    roots = (place, small_demo, small_run, small_export, place.parent.with_name(f"{place.parent.name}-home"))
    before = snapshot(*roots)
    outcome = cli(*shlex.split(arguments))
    check(outcome, code, says)
    assert snapshot(*roots) == before


def test_every_path_of_every_command_is_known_to_be_read_or_written() -> None:
    """A new option that names a file must be added above, and then its place is checked."""
    found = {
        f"{command} {name}"
        for command, function in COMMANDS.items()
        for name, kind, _, _ in parameters(function)
        if Path in (kind, *get_args(kind), *(part for one in get_args(kind) for part in get_args(one)))
    }
    assert found - OUTPUTS.keys() - INPUTS.keys() == set()


@pytest.fixture(scope="module")
def answers(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index and rows, both of one photo."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "photos").mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "photos" / "a.jpg")
    for words, out in (("index", "tiny"), "index"), (("predict", str(small_run)), "rows.jsonl"):
        with pytest.raises(SystemExit) as left:
            main(["-q", *words, str(folder / "photos"), "-o", str(folder / out)])
        assert not left.value.code
    return folder


@pytest.mark.parametrize("command", INPUTS.values(), ids=INPUTS)
def test_an_input_that_is_not_there_has_one_code(cli: Cli, place: Path, answers: Path, command: str) -> None:
    for name in ("index", "rows.jsonl"):
        (place / name).symlink_to(answers / name)
    before = snapshot(place)
    outcome = cli(*command.format("gone.txt").split())
    check(outcome, 3, "gone.txt")
    assert snapshot(place) == before


def wrong_places() -> Iterator[tuple[str, str]]:
    for command, ending in OUTPUTS.values():
        yield command, f"file/new{ending}"
        yield command, f"{'n' * 300}{ending}"
        if ending not in {"", ".csv"}:  # a folder for predict -o holds parts
            yield command, f"folder{ending}"
        if not ending:
            yield command, "file"


@pytest.mark.parametrize(("command", "wrong"), list(wrong_places()))
def test_an_output_is_refused_before_any_work(cli: Cli, place: Path, command: str, wrong: str) -> None:
    for ending in {one for _, one in OUTPUTS.values()} - {"", ".html"}:
        (place / f"folder{ending}").mkdir()
    before = snapshot(place)
    outcome = cli(*command.format(wrong).split())
    check(outcome, 2, wrong)
    assert snapshot(place) == before


def parser_mistakes() -> Iterator[list[str]]:
    """Per command: an unknown option, and every value that its options cannot have."""
    for command, function in COMMANDS.items():
        words = command.split()
        yield [*words, "--nonsense"]
        for name, kind, described, _ in parameters(function):
            if isinstance(described, ArgumentInfo):
                continue
            declared = [described.default, *(described.param_decls or ())]
            named = [flag for flag in declared if isinstance(flag, str) and flag.startswith("--")]
            flag = named[-1] if named else f"--{name.replace('_', '-')}"
            if any(get_origin(part) is Literal for part in (kind, *get_args(kind))):
                yield [*words, flag, "no-such-choice"]
            if described.min is not None:
                yield [*words, f"{flag}={described.min - 1}"]


@pytest.mark.parametrize("arguments", list(parser_mistakes()), ids=" ".join)
def test_what_an_option_cannot_be_is_wrong_usage(cli: Cli, place: Path, arguments: list[str]) -> None:
    before = snapshot(place)
    outcome = cli(*arguments)
    check(outcome, 2, "")
    assert "Error" in outcome.err or not outcome.out
    assert snapshot(place) == before
