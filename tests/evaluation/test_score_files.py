from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refiner_cli.errors import ScoresError
from refiner_cli.evaluation import score_files as module
from refiner_cli.evaluation.metrics.bias_sweep import sweep
from refiner_cli.evaluation.metrics.streaming import ScoreStream
from refiner_cli.evaluation.score_files import open_scores
from tests.evaluation.cases import Case, make_case


def arrays(case: Case) -> dict[str, Any]:
    return {
        "scores": case.scores,
        "truth": case.truth,
        "seen": case.space.seen,
        "pair_state": case.space.pair_state,
        "pair_object": case.space.pair_object,
        "allowed": case.allowed,
    }


CASE = make_case(11, images=30, allowed=0.8, skill=2.0)


def saved(folder: Path, **changed: Any) -> Path:
    content = {name: value for name, value in {**arrays(CASE), **changed}.items() if value is not None}
    np.savez(folder / "scores.npz", **content)
    return folder / "scores.npz"


def summary_of(file: Path) -> Any:
    source = open_scores(file)
    stream = ScoreStream(source.space, source.allowed)
    for rows, truth in source.blocks():
        stream.update(rows, truth)
    return stream.summary()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("block", [1, 1 << 26])
def test_a_file_gives_what_the_matrix_gives(
    tmp_path: Path, save: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    save(tmp_path / "scores.npz", **arrays(CASE))
    assert sweep(summary_of(tmp_path / "scores.npz"), CASE.space) == sweep(CASE.summary(), CASE.space)


def test_columns_first_and_other_floats_are_read(tmp_path: Path) -> None:
    for scores in (np.asfortranarray(CASE.scores), CASE.scores.astype(np.float64)):
        assert sweep(summary_of(saved(tmp_path, scores=scores)), CASE.space) == sweep(
            CASE.summary(), CASE.space
        )


def test_all_pairs_compete_where_nothing_is_said(tmp_path: Path) -> None:
    assert open_scores(saved(tmp_path, allowed=None)).allowed is None


def test_names_of_the_file_are_used(tmp_path: Path) -> None:
    file = saved(tmp_path, states=np.array(["wet", "dry", "old"]), objects=np.array(["a", "b", "c", "d"]))
    assert open_scores(file).space.states == ("wet", "dry", "old")


BAD = {
    "holds no array 'truth'": {"truth": None},
    "'scores' has the shape (3,)": {"scores": np.zeros(3, np.float32)},
    "'scores' holds int64": {"scores": np.zeros((30, 12), np.int64)},
    "'truth' has the shape (29,)": {"truth": CASE.truth[:-1]},
    "truth[4] is 99": {"truth": np.where(np.arange(30) == 4, 99, CASE.truth)},
    "truth[0] is -1": {"truth": np.where(np.arange(30) == 0, -1, CASE.truth)},
    "'truth' holds float64": {"truth": CASE.truth.astype(float)},
    "'seen' holds int64": {"seen": CASE.space.seen.astype(int)},
    "'seen' has the shape (11,)": {"seen": CASE.space.seen[:-1]},
    "pair_object[2] is 4": {
        "pair_object": np.where(np.arange(12) == 2, 4, CASE.space.pair_object),
        "objects": np.array(["a", "b", "c", "d"]),
    },
    "the pairs 0 and 1 are the same": {
        "pair_object": np.where(np.arange(12) == 1, 0, CASE.space.pair_object)
    },
    "'allowed' lets no pair compete": {"allowed": np.zeros(12, bool)},
    "'states' must be": {"states": np.array(["a", "a", "b"])},
    "'truth' cannot be read": {"truth": np.array([object()] * 30)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_name_the_place(tmp_path: Path, message: str) -> None:
    with pytest.raises(ScoresError) as caught:
        open_scores(saved(tmp_path, **BAD[message]))
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_row_and_column(tmp_path: Path, value: float) -> None:
    scores = CASE.scores.copy()
    scores[17, 5] = value
    with pytest.raises(ScoresError, match=r"scores\[17, 5\] \(the pair '1 1'\)"):
        summary_of(saved(tmp_path, scores=scores))


def test_missing_torn_and_foreign_files(tmp_path: Path) -> None:
    whole = saved(tmp_path).read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    for name in ("absent", "torn", "text"):
        with pytest.raises(ScoresError, match=name):
            open_scores(tmp_path / f"{name}.npz")


def with_header_field(content: bytes, local: int, central: int, value: int) -> bytes:
    """A zip archive with another value at a place of each member's two headers."""
    changed = bytearray(content)
    for signature, place in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = changed.find(signature)
        while at >= 0:
            changed[at + place] = value
            at = changed.find(signature, at + 1)
    return bytes(changed)


def test_members_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    file = saved(tmp_path)
    whole = file.read_bytes()
    headless = whole.replace(b"PK\x03\x04", b"PK\x03\x05")
    encrypted, foreign = with_header_field(whole, 6, 8, 1), with_header_field(whole, 8, 10, 97)
    for content in (headless, encrypted, foreign):
        file.write_bytes(content)
        with pytest.raises(ScoresError, match=r"'scores' cannot be read \(.+\)\."):
            open_scores(file)


def test_a_header_that_asks_for_any_size_is_refused(tmp_path: Path) -> None:
    file = saved(tmp_path, truth=None)
    with zipfile.ZipFile(file, "a") as archive, archive.open("truth.npy", "w") as stream:
        header = {"descr": "<i8", "fortran_order": False, "shape": (2**60,)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(ScoresError, match="'truth' cannot be read"):
        open_scores(file)


def test_a_damaged_compressed_matrix_is_noticed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "scores.npz", **arrays(CASE))
    content = bytearray((tmp_path / "scores.npz").read_bytes())
    content[400:420] = bytes(20)
    (tmp_path / "scores.npz").write_bytes(content)
    with pytest.raises(ScoresError):
        summary_of(tmp_path / "scores.npz")
