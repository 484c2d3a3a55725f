"""Push, pull and every command's MODEL through a Hub on loopback; what goes wrong is one sentence, exit 4."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from refiner_cli.core.model_io.hub import HubName, hub_model
from refiner_cli.errors import FetchError, UsageError
from refiner_cli.metric_names import HEADLINE_METRICS
from tests.conftest import Cli
from tests.core.model_io.hub_server import TOKEN, LoopbackHub, loopback_hub

NAME = "ann/apples"
MODEL = f"hf-hub:{NAME}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with loopback_hub(monkeypatch, tmp_path / "cache") as made:
        yield made


def again(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """As in a new process, with another address of the Hub."""
    hub_model.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def photos(small_demo: Path) -> Path:
    return next((small_demo / "images").iterdir())


def test_push_pull_predict_and_compare(
    cli: Cli,
    hub: LoopbackHub,
    small_run: Path,
    small_demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "eval.json").write_text(cli("eval", small_run, "--json", "--bootstrap-samples", 20).out)
    pushed = cli("export", small_run, "--push", NAME, "--private", "--eval", tmp_path / "eval.json", "--json")
    assert pushed.code == 0, pushed.err
    assert hub.private[NAME] is True
    assert (pushed.json["repository"], pushed.json["commit"]) == (NAME, hub.main(NAME))
    files = hub.repositories[NAME][hub.main(NAME)]
    assert {"config.json", "model.safetensors", "README.md", "checksums.json"} <= files.keys()
    card = files["README.md"].decode()
    assert f"refiner predict {MODEL} PHOTOS" in card
    assert "| licence of the data | MIT, as this program |" in card
    assert "| licence of the backbone | MIT, as refiner |" in card
    assert json.loads(files["checksums.json"])["sha256"]["model.safetensors"] in card
    low, high = json.loads((tmp_path / "eval.json").read_text())["worlds"]["closed"]["intervals"]["AUC"]
    assert f"({low:.1f} to {high:.1f})" in card

    ours = cli("predict", small_run, photos(small_demo))
    theirs = cli("predict", MODEL, photos(small_demo))
    assert theirs.code == 0, theirs.err
    assert theirs.out == ours.out
    assert cli("info", MODEL, "--json").json["method"] == "refiner"
    compared = cli("compare", small_run, MODEL, "--world", "closed", "--bootstrap-samples", 20, "--json")
    assert compared.code == 0, compared.err

    again(monkeypatch, "http://127.0.0.1:9")  # nobody listens: the cache is enough
    offline = cli("predict", f"{MODEL}", photos(small_demo))
    assert offline.out == ours.out, offline.err
    assert TOKEN not in pushed.err + pushed.out + theirs.err + offline.err


def test_an_older_revision_stays_reachable(
    cli: Cli, hub: LoopbackHub, small_run: Path, small_demo: Path, tmp_path: Path
) -> None:
    first = cli("export", small_run, "--push", NAME, "--no-backbone", "--json")
    assert first.json["bytes"] < 3e6
    old = first.json["commit"]
    other = cli("train", small_demo, "--init", f"{MODEL}@{old}", "--set", "train.max_steps=1",
                "--out", tmp_path / "run", "--json")  # fmt: skip
    assert other.json["init"]["new"] == []
    assert cli("export", tmp_path / "run", "--push", NAME, "--no-backbone").code == 0
    hub_model.cache_clear()
    rows = [cli("predict", name, photos(small_demo)).out for name in (MODEL, f"{MODEL}@{old}")]
    assert rows == [cli("predict", run, photos(small_demo)).out for run in (tmp_path / "run", small_run)]
    assert rows[0] != rows[1]


def test_a_backbone_of_that_name_is_not_taken_for_a_model(hub: LoopbackHub) -> None:
    hub.commit("bob/clip", {"open_clip_config.json": b"{}", "config.json": b'{"model_type": "clip"}'})
    hub.commit("bob/other", {"open_clip_config.json": b"{}"})
    assert hub_model("hf-hub:bob/clip") is None
    assert hub_model("hf-hub:bob/other") is None


def test_the_weights_of_a_large_graph_are_fetched_with_it(hub: LoopbackHub) -> None:
    files = {"image.onnx": b"graph", "image.onnx.data": b"weights", "photo.jpg": b"another file"}
    hub.commit("bob/large", {"config.json": b'{"format": "refiner.onnx/1"}', **files})
    folder = hub_model("hf-hub:bob/large")
    assert folder is not None
    assert {file.name for file in folder.iterdir()} == {"config.json", "image.onnx", "image.onnx.data"}


@pytest.fixture
def pushed(cli: Cli, hub: LoopbackHub, small_run: Path) -> LoopbackHub:
    assert cli("export", small_run, "--push", NAME, "--no-backbone").code == 0
    hub_model.cache_clear()
    return hub


def fails(cli: Cli, *arguments: object) -> str:
    """The one sentence of a command that ends with 4; the token is not in it."""
    done = cli(*arguments)
    assert done.code == FetchError.exit_code, done.err
    assert TOKEN not in done.err + done.out
    assert "hf_wrong" not in done.err + done.out
    assert "Traceback" not in done.err
    (line,) = done.err.strip().splitlines()
    return line


def test_a_missing_revision_or_repository(cli: Cli, pushed: LoopbackHub, small_demo: Path) -> None:
    assert f"{MODEL}@v9 does not exist" in fails(cli, "predict", f"{MODEL}@v9", photos(small_demo))
    assert "hf-hub:ann/pears does not exist" in fails(cli, "info", "hf-hub:ann/pears")


def test_a_wrong_token_is_refused_before_the_work(
    cli: Cli,
    pushed: LoopbackHub,
    small_run: Path,
    small_demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "token is wrong" in fails(cli, "-q", "export", small_run, tmp_path / "model", "--push", "ann/new")
    assert not (tmp_path / "model").exists()
    assert "token is wrong" in fails(cli, "predict", MODEL, photos(small_demo))


def test_without_a_network(
    cli: Cli, pushed: LoopbackHub, small_run: Path, small_demo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again(monkeypatch, "http://127.0.0.1:9")
    assert "is not in the cache" in fails(cli, "predict", MODEL, photos(small_demo))
    assert "transfer" in fails(cli, "-q", "export", small_run, "--push", "ann/new")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "is not in the cache" in fails(cli, "predict", MODEL, photos(small_demo))


def test_an_upload_that_fails_in_hf_xet(
    cli: Cli, hub: LoopbackHub, small_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def upload(*_arguments: object, **_options: object) -> None:
        raise RuntimeError(f"connection lost, {TOKEN}")

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", upload)
    line = fails(cli, "-q", "export", small_run, "--push", NAME, "--no-backbone")
    assert "by hf_xet failed (connection lost, ***)" in line
    assert "HF_HUB_DISABLE_XET=1" in line


def test_a_file_that_breaks_off_or_arrives_damaged(
    cli: Cli, pushed: LoopbackHub, small_run: Path, small_demo: Path
) -> None:
    pushed.cut_at = 1000
    assert "The transfer of" in fails(cli, "predict", MODEL, photos(small_demo))
    pushed.cut_at = None
    files = pushed.repositories[NAME][pushed.main(NAME)]
    whole = files["model.safetensors"]
    files["model.safetensors"] = whole[:-1] + bytes([whole[-1] ^ 1])
    damaged = fails(cli, "predict", MODEL, photos(small_demo))
    assert "model.safetensors is damaged: its checksum differs" in damaged


@pytest.mark.parametrize("text", ["hf-hub:apples", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:a b/c", "../x"])
def test_what_names_no_repository(text: str) -> None:
    with pytest.raises(UsageError, match="does not name a repository"):
        HubName.parse(text)


def test_usage(cli: Cli, small_run: Path, tmp_path: Path) -> None:
    assert cli("export", small_run).code == 2
    assert cli("export", small_run, tmp_path / "x", "--private").code == 2


WORLDS: dict[str, object] = {"closed": dict.fromkeys(HEADLINE_METRICS, 1.0)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"schema": "refiner.train/1"}, "(schema: input should be 'refiner.eval/1')"),
        ({"worlds": [1]}, "(worlds: input should be an object)"),
        ({"worlds": {"closed": {"S": "high"}}}, "(worlds.closed.S: input should be a valid number"),
        ({"worlds": WORLDS, "calibration": {"bias": 1.0}}, "not of {run}: its calibration is another one."),
    ],
)
def test_a_card_takes_no_figures_of_something_else(
    cli: Cli, small_export: Path, tmp_path: Path, content: dict[str, object], says: str
) -> None:
    whole = {"schema": "refiner.eval/1", "dataset": "demo", "split": "test"} | content
    (tmp_path / "eval.json").write_text(json.dumps(whole))
    refused = cli("export", small_export, tmp_path / "x", "--no-backbone", "--eval", tmp_path / "eval.json")
    assert refused.code == 3
    assert says.format(run=small_export) in refused.err
    assert not (tmp_path / "x").exists()
