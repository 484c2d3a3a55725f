"""The command line as a whole: help without torch, errors as one sentence, completion scripts."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from refiner_cli._version import __version__
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = (
    "demo", "download", "dataset", "train", "eval", "compare", "predict", "export", "config", "info",
    "doctor", "bench", "guide", "reproduce",
)  # fmt: skip


def fresh(code: str) -> str:
    """Run Python code in a new process at the root and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], *[[command, "--help"] for command in COMMANDS]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom refiner_cli.__main__ import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as e: assert not e.code\n"
        "print('heavy:', sorted({'torch', 'open_clip', 'torchvision', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert "heavy: []" in fresh(code)


def test_the_package_itself_does_not_import_torch() -> None:
    assert fresh("import refiner_cli, sys; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize(
    ("set_by_user", "policy", "spins"),
    [
        ({}, "PASSIVE", "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        ({"OMP_WAIT_POLICY": "active"}, "ACTIVE", r"\d{6,}"),
    ],
)
def test_threads_spin_shortly_and_sleep(set_by_user: dict[str, str], policy: str, spins: str) -> None:
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-m", "refiner_cli", "info", "tiny"]
    environment |= set_by_user | {"OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    assert re.search(rf"OMP_WAIT_POLICY *= *'{policy}'", done.stderr)
    assert re.search(rf"GOMP_SPINCOUNT *= *'{spins}'", done.stderr)


def test_completion_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom refiner_cli.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    environment = os.environ | {
        "_REFINER_COMPLETE": "complete_bash",
        "COMP_WORDS": "refiner ",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=environment
    )
    assert set(COMMANDS) <= set(done.stdout.split())
    assert done.stderr == "False\n"


@pytest.mark.parametrize(
    ("shell", "name"),
    [("bash", "refiner.bash"), ("zsh", "_refiner"), ("fish", "refiner.fish"), ("powershell", "refiner.ps1")],
)
def test_the_completion_scripts_are_what_the_program_prints(shell: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refiner_cli", "--show-completion", shell],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
    )  # fmt: skip
    assert done.stdout.strip() == (ROOT / "completions" / name).read_text("utf-8").strip()


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"refiner {__version__}\n"


def test_every_command_is_listed(cli: Cli) -> None:
    text = cli("--help").out
    assert all(command in text for command in COMMANDS)


def test_an_unknown_option_is_wrong_usage(cli: Cli) -> None:
    assert cli("train", "demo", "--nonsense").code == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "nowhere"], 3, "There is no dataset 'nowhere'"),
        (["train", "DEMO", "--set", "train.maxsteps=3"], 2, "unknown key 'train.maxsteps'. Did you mean"),
        (["train", "DEMO", "--device", "cuda:7", "--out", "OUT"], 6, "cuda:7 is not available"),
        (["train", "DEMO", "--device", "quantum", "--out", "OUT"], 2, "The device 'quantum' is unknown"),
        (["train", "DEMO", "--backbone", "ViT-XXL", "--out", "OUT"], 3, "The backbone 'ViT-XXL' is unknown"),
        (["train", "DEMO", "--pretrained", "gone.pt", "--out", "OUT"], 3, "neither a"),
        (["train"], 2, "A dataset is missing"),
        (["eval", "nowhere"], 3, "There is no model at nowhere"),
        (["predict", "nowhere", "alsonowhere"], 3, "There is no file or folder alsonowhere"),
        (["export", "nowhere", "OUT"], 3, "There is no model at nowhere"),
        (["info", "nowhere"], 3, "There is no dataset 'nowhere'"),
        (["demo", "--out", "DEMO"], 2, "exists already"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_code(
    cli: Cli, small_demo: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    places = {"DEMO": str(small_demo), "OUT": str(tmp_path / "out")}
    outcome = cli("-q", *[places.get(a, a) for a in arguments])
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err
    assert "Traceback" not in outcome.err


def test_a_malformed_pair_list_is_named_with_its_line(cli: Cli, small_demo: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "demo"
    shutil.copytree(small_demo, folder)
    pairs = folder / "compositional-split-natural" / "train_pairs.txt"
    pairs.write_text("burnt apple\nonly-one-word\n")
    outcome = cli("train", folder, "--backbone", "tiny", "--out", tmp_path / "run")
    assert outcome.code == 3
    assert "train_pairs.txt, line 2" in outcome.err


def test_weights_that_cannot_be_fetched_exit_4_and_say_how_to_pass_a_file(
    cli: Cli, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    def unreachable(tag: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    outcome = cli("train", small_demo, "--backbone", "ViT-B-32", "--out", tmp_path / "run")
    assert outcome.code == 4
    assert "no route to host" in outcome.err
    assert "--pretrained TAG=FILE" in outcome.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_what_to_do(
    cli: Cli, small_run: Path, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("refiner_cli.inference.gallery.write_page", full)
    image = next((small_demo / "images").rglob("*.jpg"))
    out = tmp_path / "rows.jsonl"
    outcome = cli("predict", small_run, image, "-o", out, "--gallery", tmp_path / "page.html")
    assert outcome.code == 1
    assert "Free some space, then run the same command again" in outcome.err
    assert len(out.read_text().splitlines()) == 1


def test_memory_of_a_gpu_that_others_took_is_one_sentence(
    cli: Cli, small_run: Path, small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr("refiner_cli.core.models.base.Model.to", full)
    outcome = cli("predict", small_run, small_demo / "images")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("Error: There is not enough memory.")
