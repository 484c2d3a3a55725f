"""Tab offers values, in real shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from refiner_cli.cli.completion import backbone_tags, setting_keys
from refiner_cli.config import known_fields
from refiner_cli.plugins import BUILT_IN_METHODS, method_names
from tests.conftest import ROOT

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def shell_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a program called refiner, and a run in runs/."""
    folder = tmp_path_factory.mktemp("shell")
    program = folder / "bin" / "refiner"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m refiner_cli "$@"\n')
    program.chmod(0o755)
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "run.json").write_text("{}")
    return folder


def environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "REFINER_HOME": str(folder / "home")}


def bash(folder: Path, *lines: str) -> list[list[str]]:
    """What bash offers at the end of each line, by the installed script and its own rules."""
    asked = "\n".join(
        f"COMP_WORDS=({line}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMPREPLY=(); "
        "_refiner_completion refiner; printf '%s\\n' \"${COMPREPLY[@]}\" ==="
        for line in lines
    )
    script = f"source {ROOT / 'completions' / 'refiner.bash'}\n{asked}\n"
    done = subprocess.run(
        [str(BASH), "--norc", "-c", script], cwd=folder, env=environment(folder), check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [part.split() for part in done.stdout.split("===")[:-1]]


@pytest.mark.skipif(BASH is None, reason="bash is not installed")
def test_bash_offers_values(shell_home: Path) -> None:
    lines = [
        'refiner train --method ""', "refiner train --backbone ViT-B-3",
        'refiner train --backbone ViT-B-32 --pretrained "laion2b_s"', 'refiner predict --device ""',
        'refiner eval --precision ""', "refiner train --set train.l", "refiner train mit",
        "refiner train --config o", "refiner predict runs/", "refiner info runs/m",
        'refiner eval ""', "refiner eval ViT-L-14-3", 'refiner reproduce ""',
        "refiner train g", "refiner download g",
    ]  # fmt: skip
    found = bash(shell_home, *lines)
    assert found[0] == method_names()
    assert "ViT-B-32" in found[1]
    assert found[2] == [
        t for t in open_clip.list_pretrained_tags_by_model("ViT-B-32") if t.startswith("laion2b_s")
    ]
    assert found[3] == ["auto", "cpu", "cuda", "cuda:0", "mps"]
    assert found[4] == ["auto", "fp32", "bf16", "fp16"]
    assert "train.lr=" in found[5]
    assert found[6] == ["mit-states"]
    assert found[7] == ["own"]
    assert found[8] == found[9] == found[10] == ["runs/mine"]
    assert found[11] == ["ViT-L-14-336", "ViT-L-14-336-quickgelu"]
    assert found[12] == ["mit-states", "ut-zappos", "c-gqa"]
    assert (found[13], found[14]) == ([], ["glove"])


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_offer_values(shell_home: Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    if shell == "fish":
        asked = f"source {ROOT / 'completions' / 'refiner.fish'}; complete -C 'refiner train --method '"
        command = [program, "--no-config", "-c", asked]
    else:  # what its completion system calls for the words so far
        script = ROOT / "completions" / "_refiner"
        asked = (
            "_arguments() { print -r -- $@ }; compdef() { }; "
            f"source {script}; words=(refiner train --method ''); CURRENT=4; _refiner_completion"
        )
        command = [program, "-f", "-c", asked]
    done = subprocess.run(
        command, cwd=shell_home, env=environment(shell_home), check=False, text=True, capture_output=True
    )
    assert all(name in done.stdout for name in method_names()), done.stdout + done.stderr


def test_every_setting_is_offered_and_no_former_name() -> None:
    offered = [value.removesuffix("=") for value in setting_keys(None)]  # type: ignore[arg-type]
    assert set(offered) == {key for method in BUILT_IN_METHODS for key in known_fields(method)}
    assert len(offered) == len(set(offered))


def test_the_table_of_backbones_is_read_completely() -> None:
    tags = backbone_tags()
    assert len(tags) >= 130
    for name in ("ViT-L-14", "RN50", "ViT-B-16-SigLIP"):
        assert tags[name] == open_clip.list_pretrained_tags_by_model(name)
