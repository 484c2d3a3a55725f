"""ONNX exports agree with their model, or are refused; they need neither refiner nor PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

import refiner_cli
from refiner_cli.__main__ import main
from refiner_cli.core.model_io import onnx_export
from refiner_cli.core.model_io.card import CardFacts
from refiner_cli.core.model_io.checkpoint import read_model
from refiner_cli.core.model_io.onnx_export import CheckImages, export_onnx
from refiner_cli.core.model_io.onnx_files import Agreement
from refiner_cli.core.model_io.onnx_model import OnnxModel, read_onnx
from refiner_cli.core.model_io.onnx_quantize import quantize
from refiner_cli.core.models.base import Scores
from refiner_cli.errors import EnvironmentLacksError, ModelFileError, RefinerError, UsageError
from refiner_cli.inference.recogniser import Recogniser
from tests.conftest import Cli
from tests.guide.examples import documents, examples


@pytest.fixture(scope="module")
def source(small_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small exported model, with every part of the score in use."""
    folder = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(small_export, folder)
    config = json.loads((folder / "config.json").read_text())
    config["calibration"] |= {"state_weight": 0.5, "object_weight": 0.25, "bias": 1.0, "open_bias": 9.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def exported(source: Path) -> Path:
    """The same as ONNX, by the command."""
    with pytest.raises(SystemExit) as left:
        main(["-q", "export", str(source), str(source.with_name("onnx")), "--format", "onnx"])
    assert not left.value.code
    return source.with_name("onnx")


@pytest.mark.parametrize("count", [1, 3, 7])
def test_scores_are_the_models_for_any_number_of_images(exported: Path, source: Path, count: int) -> None:
    images = torch.randn(count, 3, 96, 96, generator=torch.Generator().manual_seed(count))
    first, second = (
        Recogniser(model).predict_tensor(images, top_k=100)
        for model, _ in (read_model(source), read_onnx(exported))
    )
    for one, other in zip(first, second, strict=True):
        scores = {(c.state, c.object): c.score for c in other.compositions}
        assert all(scores[c.state, c.object] == pytest.approx(c.score, abs=1e-3) for c in one.compositions)
        assert [c.seen for c in one.compositions] == [c.seen for c in other.compositions]


def test_the_rows_of_predict_are_the_models(cli: Cli, exported: Path, source: Path, small_demo: Path) -> None:
    agreement = Agreement(**json.loads((exported / "config.json").read_text())["agreement"])
    assert agreement.largest_difference < 1e-3
    assert (agreement.changed, agreement.source) == (0, "of demo")
    images = small_demo / "images"
    ours, theirs = (
        list(map(json.loads, cli("-q", "predict", model, images, "--format", "jsonl").out.splitlines()))
        for model in (source, exported)
    )
    assert len(ours) == len(theirs) > 50
    for one, other in zip(ours, theirs, strict=True):
        assert (one["path"], one["status"]) == (other["path"], other["status"])
        first, second = one["predictions"][0], other["predictions"][0]
        assert all(first[key] == second[key] for key in ("state", "object", "seen"))
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-3)


def test_eight_bits_are_smaller_and_near(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "model")
    graph = tmp_path / "model" / "image.onnx"
    quantize(graph)
    assert graph.stat().st_size < (exported / "image.onnx").stat().st_size / 2.5
    assert {file.name for file in graph.parent.iterdir()} == {file.name for file in exported.iterdir()}
    images = torch.randn(4, 3, 96, 96)
    ours, theirs = (read_onnx(folder)[0].encode_images(images) for folder in (exported, tmp_path / "model"))
    assert ((ours.composition * theirs.composition).sum(-1) > 0.99).all()
    assert not torch.equal(ours.composition, theirs.composition)


def test_a_large_graph_in_eight_bits_keeps_no_weights_of_the_first(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    shutil.copytree(exported, tmp_path / "model")
    graph = tmp_path / "model" / "image.onnx"
    graph.unlink()
    onnx.save_model(
        onnx.load(exported / "image.onnx"), graph, save_as_external_data=True, location="image.onnx.data"
    )
    images = torch.randn(4, 3, 96, 96)
    ours = read_onnx(tmp_path / "model")[0].encode_images(images)
    weights = graph.with_name("image.onnx.data")
    before = weights.stat().st_size
    quantize(graph)
    assert weights.stat().st_size < before / 2.5
    names = {file.name for file in exported.iterdir()} | {weights.name}
    assert {file.name for file in graph.parent.iterdir()} == names
    theirs = read_onnx(tmp_path / "model")[0].encode_images(images)
    assert ((ours.composition * theirs.composition).sum(-1) > 0.99).all()
    assert not torch.equal(ours.composition, theirs.composition)


def test_a_graph_in_one_file_leaves_no_weights_beside_it(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "image.onnx", tmp_path)
    (tmp_path / "image.onnx.data").write_bytes(b"of an earlier graph")
    quantize(tmp_path / "image.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["image.onnx"]


def test_a_large_graph_is_written_and_named_with_its_weights(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, info = read_model(source)
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 2**20)
    check = CheckImages(torch.randn(4, 3, 96, 96), "noise")
    folder = tmp_path / "model"
    export_onnx(folder, model, info, model.space, precision="int8", check=check, facts=CardFacts())
    sums = json.loads((folder / "checksums.json").read_text())["sha256"]
    card = (folder / "README.md").read_text()
    assert all(f"SHA-256 of {name} | {sums[name]} |" in card for name in ("image.onnx", "image.onnx.data"))


def test_a_backbone_with_own_words_is_exported_and_kept_to_them(
    cli: Cli, tmp_path: Path, small_demo: Path
) -> None:
    (tmp_path / "pairs.txt").write_text("sliced apple\nrotten pear\n")
    photo, *others = (small_demo / "images").rglob("*.jpg")
    single = tmp_path / "single"  # one image to check with, and a graph for any number
    single.mkdir()
    shutil.copy(photo, single)
    words = ["--pairs", tmp_path / "pairs.txt", "--check-images", single]
    made = cli("export", "tiny", tmp_path / "model", "--format", "onnx", *words)
    assert made.code == 0, made.err
    card = (tmp_path / "model" / "README.md").read_text()
    assert "Recognises 2 states of 2 objects (2 known pairs, 0 of them seen in training)." in card
    done = cli("-q", "predict", tmp_path / "model", photo, *others[:4], "--format", "jsonl")
    assert len(done.out.splitlines()) == 5
    for row in map(json.loads, done.out.splitlines()):
        assert {p["object"] for p in row["predictions"]} == {"apple", "pear"}
    other = cli("predict", tmp_path / "model", photo, "--pairs", tmp_path / "pairs.txt", "--world", "closed")
    assert other.code == 0, other.err  # the same pairs
    (tmp_path / "more.txt").write_text("wet dog\n")
    refused = cli("predict", tmp_path / "model", photo, "--pairs", tmp_path / "more.txt")
    assert refused.code == UsageError.exit_code
    assert "knows the 2 pairs it was made for" in refused.err


@pytest.mark.parametrize("bound", ["ALLOWED_DIFFERENCE", "ALLOWED_CHANGED"])
def test_an_export_that_does_not_agree_is_discarded(
    exported: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    model, info = read_model(source)
    for step, name in (("trace_image_side", "image.onnx"), ("trace_scores", "scores.onnx")):
        monkeypatch.setattr(onnx_export, step, partial(copy_graph, exported / name))
    right = OnnxModel.score
    monkeypatch.setattr(
        OnnxModel, "score", lambda *given: Scores(-right(*given).composition, None, None)
    )  # the worst pair is the best
    relaxed = "ALLOWED_CHANGED" if bound == "ALLOWED_DIFFERENCE" else "ALLOWED_DIFFERENCE"
    monkeypatch.setitem(getattr(onnx_export, relaxed), "fp32", 1e9 if bound == "ALLOWED_CHANGED" else 1.0)
    check = CheckImages(torch.randn(4, 3, 96, 96), "noise")
    with pytest.raises(RefinerError, match="does not agree with the model"):
        export_onnx(
            tmp_path / "x", model, info, model.space, precision="fp32", check=check, facts=CardFacts()
        )
    assert list(tmp_path.iterdir()) == []


def test_a_graph_for_one_number_of_images_does_not_pass(exported: Path, source: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    shutil.copytree(exported, tmp_path / "model")
    graph = onnx.load(exported / "image.onnx")
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, tmp_path / "model" / "image.onnx")
    (model, _), config = read_model(source), json.loads((exported / "config.json").read_text())
    bank = onnx_export.text_bank(model, model.space)
    with pytest.raises(ModelFileError, match="cannot be run"):
        onnx_export.require_agreement(
            model, bank, OnnxModel.from_config(tmp_path / "model", config), "fp32",
            CheckImages(torch.randn(2, 3, 96, 96), "noise"),
        )  # fmt: skip


def copy_graph(graph: Path, *given: object) -> None:
    """A stand-in for tracing, which takes seconds."""
    (file,) = [value for value in given if isinstance(value, Path)]
    shutil.copy(graph, file)


def test_what_cannot_be_exported(
    cli: Cli, small_run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, sentence in (
        (["--format", "onnx", "--dtype", "fp16"], "--dtype fp16 is not for ONNX"),
        (["--format", "onnx", "--no-backbone"], "--no-backbone is not for ONNX"),
        (["--dtype", "int8"], "--dtype int8 is for ONNX"),
        (["--pairs", "x"], "--pairs is for ONNX"),
        (["--format", "onnx", "--check-images", str(exported)], "There is no image in"),
    ):
        done = cli("export", small_run, tmp_path / "x", *arguments)
        assert (done.code, sentence in done.err) == (2, True), done.err
    again = cli("export", exported, tmp_path / "x", "--format", "onnx")
    assert (again.code, "is an ONNX export already" in again.err) == (2, True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missing = cli("export", small_run, tmp_path / "x", "--format", "onnx")
    assert missing.code == EnvironmentLacksError.exit_code
    assert "pip install 'refiner-czsl[onnx]'" in missing.err


def test_other_commands_say_what_an_onnx_folder_is_for(cli: Cli, exported: Path, small_demo: Path) -> None:
    done = cli("train", small_demo, "--init", exported)
    assert done.code == ModelFileError.exit_code
    assert "An ONNX export is for 'refiner predict'" in done.err
    facts = cli("info", exported, "--json").json
    assert (facts["kind"], facts["precision"], facts["agreement"]["changed"]) == ("onnx", "fp32", 0)
    for option in (["--device", "cuda"], ["--precision", "bf16"]):
        assert cli("predict", exported, small_demo / "images", *option).code == 2


def damaged_copies(folder: Path, place: Path) -> dict[str, Path]:
    """Copies with a fault each, by what the sentence names."""
    found = {}
    for name, change in {
        "image.onnx": lambda data: data[: len(data) // 2],
        "scores.onnx": lambda data: b"",
        "text.npz": lambda data: data[:100],
        "config.json": lambda data: data.replace(b'"precision": "fp32"', b'"precision": "fp4"'),
        "labels": lambda data: data.replace(b'"width": 128', b'"width": 64'),
    }.items():
        copy = place / name.replace(".", "-")
        copy.mkdir()
        for file in folder.iterdir():
            content = file.read_bytes()
            hit = file.name == name or (name == "labels" and file.name == "config.json")
            (copy / file.name).write_bytes(change(content) if hit else content)
        found[name] = copy
    return found


def test_damage_is_one_sentence(exported: Path, tmp_path: Path) -> None:
    for name, folder in damaged_copies(exported, tmp_path).items():
        with pytest.raises(ModelFileError, match=name):
            read_onnx(folder)


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "refiner_cli", "open_clip", "transformers"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


def test_the_guides_example_needs_neither_refiner_nor_torch(
    cli: Cli, exported: Path, small_demo: Path, tmp_path: Path
) -> None:
    (example,) = [e.text for e in examples(documents()["onnx"]) if e.language == "python"]
    assert len([line for line in example.splitlines() if line.strip()]) <= 36
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "onnx").symlink_to(exported)
    photo = next((small_demo / "images").rglob("*.jpg"))
    (tmp_path / "apple.jpg").write_bytes(photo.read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT + example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    *words, probability = done.stdout.split()
    row = json.loads(cli("-q", "predict", exported, photo, "--format", "jsonl").out)
    best = row["predictions"][0]
    assert words == [best["state"], best["object"]]
    assert float(probability) == pytest.approx(best["probability"], abs=0.01)


def test_the_bench_compares_with_pytorch(cli: Cli, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "refiner_cli.bench.onnx.trace_image_side", partial(copy_graph, exported / "image.onnx")
    )
    done = cli("bench", "onnx", "--rounds", 1, "--spaces", "ut-zappos", "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.json["results"]}
    for name in ("ONNX, fp32", "ONNX, int8"):
        assert rows[f"encode on the CPU: {name}"]["baseline"] == "PyTorch"
    assert rows["ONNX image tower: int8"]["ratio"] > 2


def test_python_loads_an_export(exported: Path, small_demo: Path) -> None:
    photo = next((small_demo / "images").rglob("*.jpg"))
    (made,) = refiner_cli.load(exported).predict([photo])
    assert made.compositions
    for option in ({"device": "cuda"}, {"precision": "bf16"}):
        with pytest.raises(UsageError):
            refiner_cli.load(exported, **option)
