"""The benchmark: label spaces of the published sizes, equal ways, ratios that follow from the figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from refiner_cli.bench.measure import Peak, median_seconds
from refiner_cli.bench.spaces import SPACE_SIZES, label_space
from refiner_cli.bench.suite import BenchOptions, run_bench
from refiner_cli.bench.text import PromptVectors, padded, with_prefix_cache
from refiner_cli.core.towers.backbone import load_backbone
from refiner_cli.errors import UsageError
from refiner_cli.settings import resolve
from tests.conftest import Cli

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", SPACE_SIZES)
def test_a_drawn_label_space_has_the_published_size(name: str) -> None:
    space = label_space(name)
    assert (len(space.states), len(space.objects), len(space.pairs)) == (
        SPACE_SIZES[name].states,
        SPACE_SIZES[name].objects,
        SPACE_SIZES[name].pairs,
    )


@pytest.mark.parametrize("name", SPACE_SIZES)
def test_real_pair_lists_have_the_size_that_is_drawn(shared: Path, name: str) -> None:
    space = label_space(name, shared / "splits")
    assert len(space.pairs) == SPACE_SIZES[name].pairs


def test_an_unknown_label_space_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="mit-states"):
        label_space("cifar")


def test_what_is_compared_computes_the_same() -> None:
    text = load_backbone("tiny", "none").text
    prompts = PromptVectors.of(text, label_space("ut-zappos"))
    with torch.no_grad():
        trie = with_prefix_cache(text, prompts, 512)
        for length in (8, text.context_length):
            assert torch.allclose(padded(text, prompts, length, 512), trie, atol=1e-5)


def test_jobs_take_turns_after_one_untimed_call_of_each() -> None:
    calls: list[str] = []
    taken = median_seconds({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, rounds=2)
    assert "".join(calls) == "ababab"
    assert set(taken) == {"a", "b"}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets an older peak")
def test_the_peak_holds_what_was_freed_again() -> None:
    peak = Peak(CPU)
    before = peak.read()
    torch.ones(64 * 2**20)  # 256 MiB, touched and dropped
    after = peak.read()
    assert before is not None
    assert after is not None
    assert after - before > 200 * 2**20


def test_the_command_prints_every_figure_with_its_ratio(cli: Cli) -> None:
    options = ["--spaces", "ut-zappos", "--rounds", "1", "--limit", "8", "--photos", "2"]
    done = cli("-q", "bench", "text", "train", "encode", "decode", "predict", *options,
               "--set", "train.batch_size=2", "--json")  # fmt: skip
    assert done.code == 0
    result = done.json
    assert result["schema"] == "refiner.bench/1"
    assert {"device", "precision", "cores", "torch"} <= result["machine"].keys()
    figures = result["results"]
    starts = {re.split(r"[ ,]", figure["name"])[0] for figure in figures}
    assert starts == {"text", "training", "encode", "decode", "predict"}
    assert all(figure["value"] > 0 for figure in figures)
    by_name = {figure["name"]: figure["value"] for figure in figures}
    for figure in figures:
        if figure["unit"] == "s" and figure["baseline"]:
            base = by_name[f"{figure['name'].rpartition(': ')[0]}: {figure['baseline']}"]
            assert figure["ratio"] == pytest.approx(base / figure["value"])


def test_the_table_names_the_baselines(cli: Cli) -> None:
    done = cli("bench", "encode", "--spaces", "ut-zappos", "--rounds", "1", "--set", "train.batch_size=1")
    assert done.code == 0
    assert "encode_image" in done.out
    assert "times better than" in done.out


def test_an_unknown_part_is_wrong_usage(cli: Cli) -> None:
    assert cli("bench", "speed").code == 2


def test_a_method_that_trains_nothing_has_no_step(cli: Cli) -> None:
    done = cli("bench", "train", "--spaces", "ut-zappos", "--set", "method=clip", "--json")
    assert (done.code, done.json["results"]) == (0, [])
    assert "the method clip trains nothing" in done.err


def test_a_single_photo_is_too_few_to_be_timed(cli: Cli) -> None:
    assert cli("bench", "predict", "--photos", 1).code == 2


def test_onnx_is_measured_on_the_cpu_wherever_the_rest_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = ModuleType("refiner_cli.bench.onnx")
    given = []
    onnx.bench_onnx = lambda backbone, *_: given.append(backbone) or []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, onnx.__name__, onnx)
    monkeypatch.setattr("refiner_cli.bench.suite.pick_device", lambda _: (torch.device("meta"), "a GPU"))
    order = BenchOptions(("onnx",), ("ut-zappos",), None, 1, 0, 2, tmp_path)
    config = resolve([("test", {"backbone": "tiny", "pretrained": "none"})])
    assert list(run_bench(order, config, lambda _: None)) == []
    assert {(p.device, p.dtype) for p in given[0].clip.parameters()} == {(CPU, torch.float32)}
