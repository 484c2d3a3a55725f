from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from refiner_cli.data.benchmark import SPLITS, load_benchmark
from refiner_cli.data.download.catalog import Catalogue, Counts, Dataset
from refiner_cli.data.download.catalog_files import built_in
from refiner_cli.data.download.datasets_dir import DatasetsDir
from refiner_cli.data.download.downloader import Downloader
from refiner_cli.data.download.mirrors import RetryPolicy
from refiner_cli.errors import DatasetError, FetchError, InputError, UsageError
from tests.data.conftest import Log
from tests.data.download import published
from tests.data.download.server import Site

Make = Callable[..., Downloader]
Start = Callable[..., "subprocess.Popen[str]"]


def served(dataset: Dataset, urls: dict[str, list[str]], **changes: object) -> Dataset:
    """A dataset of the catalogue whose archives come from here, with other numbers of images."""
    sources = tuple(s.model_copy(update={"urls": tuple(urls.get(s.file, ()))}) for s in dataset.sources)
    return dataset.model_copy(update={"sources": sources, **changes})


def images(expected: Counts, pairs: published.Pairs) -> Counts:
    """The published counts, with the number of images that the small archives have."""
    return expected.model_copy(update={f"{split}_images": len(pairs[split]) for split in SPLITS})


@pytest.fixture
def make(tmp_path: Path, log: Log, stop: Event) -> Make:
    def build(*datasets: Dataset, **how: object) -> Downloader:
        known = Catalogue(datasets={dataset.name: dataset for dataset in datasets})
        how.setdefault("policy", RetryPolicy(2, 0.001))
        return Downloader(DatasetsDir(tmp_path / "data"), known, report=log, stop=stop, **how)  # type: ignore[arg-type]

    return build


@pytest.fixture
def tiny(site: Site) -> Dataset:
    """A dataset of eight images in one archive of 300 kB, laid out as C-GQA."""
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    padding = {"cgqa/features.bin": random.Random(0).randbytes(300_000)}
    url = site.put("/cgqa.zip", published.c_gqa(pairs, rows, "cgqa/", padding))
    changes = {"expected": images(Counts(states=2, objects=3, train_pairs=4), pairs), "split_sha256": {}}
    return served(built_in().find("c-gqa"), {"cgqa.zip": [url]}, **changes)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- the published layouts, with the real pair lists -----------------------------------------------


@pytest.fixture
def both(site: Site, splits: Path) -> tuple[Dataset, Dataset]:
    """MIT-States and UT-Zappos as published: two zips, and one tar with the splits of both."""
    mit, zappos = published.mit_pairs(splits), published.real_pairs(splits, "ut-zappos")
    mit_rows, zappos_rows = published.rows_of(mit), published.zappos_rows(zappos)
    urls = {
        "release_dataset.zip": [site.put("/release_dataset.zip", published.mit_states(mit_rows))],
        "ut-zap50k-images.zip": [site.put("/ut-zap50k-images.zip", published.ut_zappos(zappos_rows))],
        "compositional_split_natural.tar.gz": [
            site.put("/splits.tar.gz", published.splits_tar((mit, mit_rows), (zappos, zappos_rows)))
        ],
    }
    return tuple(  # type: ignore[return-value]
        served(dataset, urls, expected=images(dataset.expected, pairs))
        for dataset, pairs in ((built_in().find("mit-states"), mit), (built_in().find("ut-zappos"), zappos))
    )


def test_mit_states_and_ut_zappos_arrive_in_the_published_folder_format(
    both: tuple[Dataset, Dataset], make: Make, site: Site, splits: Path, tmp_path: Path
) -> None:
    outcomes = make(*both).download(both)
    assert [(outcome.dataset.name, outcome.already) for outcome in outcomes] == [
        ("mit-states", False),
        ("ut-zappos", False),
    ]
    mit = load_benchmark(tmp_path / "data/mit-states")
    assert (len(mit.states), len(mit.objects), len(mit.pairs["train"])) == (115, 245, 1262)
    assert all(path.is_file() and " " not in path.name for split in SPLITS for path in mit.paths(split))
    assert (mit.images / "ancient_city").is_dir()
    assert not (mit.images / "adj_aged").exists()
    zappos = load_benchmark(tmp_path / "data/ut-zappos")
    assert (len(zappos.states), len(zappos.objects)) == (16, 12)
    assert {path.parent.name for path in zappos.paths("train")} == {
        "_".join(p) for p in zappos.pairs["train"]
    }
    assert site.asked_for("/splits.tar.gz") == [None]
    assert sorted(p.name for p in (tmp_path / "data").iterdir() if not p.name.startswith(".")) == [
        "archives",
        "mit-states",
        "refiner.lock",
        "ut-zappos",
    ]


def test_the_photos_are_those_of_their_rows(
    both: tuple[Dataset, Dataset], make: Make, splits: Path, tmp_path: Path
) -> None:
    make(*both).download(both)
    rows = published.zappos_rows(published.real_pairs(splits, "ut-zappos"))
    for number, row in enumerate(rows):
        assert (tmp_path / "data/ut-zappos/images" / row["image"]).read_bytes() == published.photo(
            number % 256
        )


def test_ut_zappos_from_a_system_that_escapes_the_last_dot(
    both: tuple[Dataset, Dataset], make: Make, site: Site, splits: Path
) -> None:
    rows = published.zappos_rows(published.real_pairs(splits, "ut-zappos"))
    site.put("/ut-zap50k-images.zip", published.ut_zappos(rows, dots=False))
    (outcome,) = make(*both).download(both[1:])
    assert outcome.verification is not None
    assert outcome.verification.usable


@pytest.mark.parametrize("root", ["cgqa/", "", "some/where/"])
def test_both_layouts_of_c_gqa(make: Make, site: Site, splits: Path, root: str) -> None:
    pairs = published.real_pairs(splits, "cgqa")
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    files = {
        f"{root}compositional-split-natural/{s}_pairs.txt": (splits / "cgqa" / f"{s}_pairs.txt").read_bytes()
        for s in SPLITS
    }
    files[f"{root}metadata_compositional-split-natural.t7"] = published.metadata(rows)
    photos = {
        f"{root}images/{row['image']}": published.photo(number % 256) for number, row in enumerate(rows)
    }
    dataset = built_in().find("c-gqa")
    url = site.put("/cgqa.zip", published.zipped({**files, **photos}))
    dataset = served(dataset, {"cgqa.zip": [url]}, expected=images(dataset.expected, pairs))
    (outcome,) = make(dataset).download([dataset])
    assert outcome.verification is not None
    assert outcome.verification.usable
    assert outcome.verification.counts == dataset.expected


def test_the_first_release_of_c_gqa_is_refused_by_name(make: Make, site: Site, tmp_path: Path) -> None:
    states, objects = [f"state{n}" for n in range(453)], [f"object{n}" for n in range(870)]
    train = tuple((states[n % 453], objects[n % 870]) for n in range(6963))
    pairs = {"train": train, "val": train[:2], "test": train[:2]}
    rows = published.rows_of({split: found[:5] for split, found in pairs.items()}, "{split}{number}.jpg")
    url = site.put("/cgqa.zip", published.c_gqa(pairs, rows, ""))
    dataset = served(built_in().find("c-gqa"), {"cgqa.zip": [url]})
    with pytest.raises(DatasetError, match="first release of C-GQA") as caught:
        make(dataset).download([dataset])
    assert caught.value.exit_code == 3
    assert not (tmp_path / "data/c-gqa").exists()


def test_names_of_vaw_czsl_with_spaces_become_dots(make: Make, tmp_path: Path) -> None:
    """Its lists separate by a plus, it comes by hand, and a file-sharing site cuts it into several zips."""
    pairs = {
        "train": (("light blue", "tennis racket"), ("old", "cup")),
        "val": (("old", "cup"),),
        "test": (("old", "tennis racket"), ("light blue", "cup")),
    }
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    first = published.split_files("", pairs, rows, "+")
    photos = {f"images/{row['image']}": published.photo() for row in rows}
    halves = list(photos.items())[:2], list(photos.items())[2:]
    files = [tmp_path / "drive-001.zip", tmp_path / "drive-002.zip"]
    files[0].write_bytes(published.zipped({**first, **dict(halves[0])}))
    files[1].write_bytes(published.zipped(dict(halves[1])))
    dataset = built_in().find("vaw-czsl").model_copy(update={"expected": Counts()})
    make(dataset).download([dataset], files)
    benchmark = load_benchmark(tmp_path / "data/vaw-czsl")
    assert benchmark.states == ("light.blue", "old")
    assert benchmark.objects == ("cup", "tennis.racket")
    assert {split: len(found) for split, found in benchmark.samples.items()} == {
        "train": 2,
        "val": 1,
        "test": 2,
    }


def test_a_dataset_that_only_comes_by_hand_says_where_from(make: Make) -> None:
    dataset = built_in().find("clothing16k")
    with pytest.raises(FetchError, match="cannot be fetched automatically") as caught:
        make(dataset).download([dataset])
    assert dataset.home in caught.value.hint
    assert "--from-archive" in caught.value.hint


def test_glove_takes_one_file_out_of_its_archive(make: Make, site: Site, tmp_path: Path) -> None:
    table = b"".join(b"word%d %s\n" % (n, b" ".join([b"0.1"] * 3)) for n in range(5))
    url = site.put("/glove.6B.zip", published.zipped({"glove.6B.50d.txt": b"x", "glove.6B.300d.txt": table}))
    glove = built_in().find("glove")
    assert glove.vectors is not None
    small = served(
        glove, {"glove.6B.zip": [url]}, vectors=glove.vectors.model_copy(update={"words": 5, "dimensions": 3})
    )
    make(small).download([small])
    assert (tmp_path / "data/glove/glove.6B.300d.txt").read_bytes() == table
    assert make(small).verify(small) is None
    (tmp_path / "data/glove/glove.6B.300d.txt").write_bytes(table[:-5] + b"\n")
    with pytest.raises(FetchError, match="does not hold a word and 3 numbers"):
        make(small).verify(small)


def test_a_made_dataset_is_made_and_verified(make: Make, grocery: Path, tmp_path: Path) -> None:
    demo = built_in().find("demo")
    (outcome,) = make(demo, makers={"demo": lambda out: shutil.copytree(grocery, out)}).download([demo])
    assert outcome.folder == tmp_path / "data/demo"
    assert make(demo).place.status(demo).verified


# --- fetching once, and only once -------------------------------------------------------------------


def test_what_is_there_is_not_fetched_again(make: Make, tiny: Dataset, site: Site) -> None:
    make(tiny).download([tiny])
    asked = len(site.asked)
    (outcome,) = make(tiny).download([tiny])
    assert outcome.already
    assert len(site.asked) == asked


def test_what_is_there_needs_no_place_to_write(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    make(tiny).download([tiny])
    for name in ("archives", ".locks"):
        shutil.rmtree(tmp_path / "data" / name)
    (outcome,) = make(tiny).download([tiny])
    assert outcome.already
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"c-gqa", "refiner.lock"}


def test_a_lost_folder_is_made_from_the_archive_that_is_here(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    make(tiny).download([tiny])
    asked = len(site.asked)
    shutil.rmtree(tmp_path / "data/c-gqa")
    make(tiny).download([tiny])
    assert len(site.asked) == asked


def test_the_hash_of_the_first_fetch_is_pinned(make: Make, tiny: Dataset, site: Site, tmp_path: Path) -> None:
    make(tiny).download([tiny])
    lock = json.loads((tmp_path / "data/refiner.lock").read_text())
    assert lock["schema"] == "refiner.lock/1"
    assert lock["archives"]["cgqa.zip"]["url"] == tiny.sources[0].urls[0]
    shutil.rmtree(tmp_path / "data/c-gqa")
    (tmp_path / "data/archives/cgqa.zip").unlink()
    pairs = published.tiny_pairs()
    other = published.c_gqa(pairs, published.rows_of(pairs, "{split}{number}.jpg"), "other/")
    site.put("/cgqa.zip", other)
    with pytest.raises(FetchError, match=r"differs from the cgqa\.zip downloaded earlier") as caught:
        make(tiny).download([tiny])
    assert "refiner.lock" in caught.value.hint
    assert not (tmp_path / "data/c-gqa").exists()
    del lock["archives"]["cgqa.zip"]
    (tmp_path / "data/refiner.lock").write_text(json.dumps(lock))
    asked = len(site.asked)
    make(tiny).download([tiny])  # what was fetched is still here
    assert len(site.asked) == asked


def test_a_published_hash_is_held_against_the_file(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    source = tiny.sources[0].model_copy(update={"sha256": "0" * 64})
    dataset = tiny.model_copy(update={"sources": (source,)})
    with pytest.raises(FetchError, match=r"is not the published cgqa\.zip"):
        make(dataset).download([dataset])


def test_an_archive_that_lies_here_is_held_against_its_hash(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    archive = tmp_path / "data/archives/cgqa.zip"
    pairs = published.tiny_pairs()
    other = published.c_gqa(pairs, published.rows_of(pairs, "{split}{number}.jpg"), "other/")
    archive.parent.mkdir(parents=True)
    archive.write_bytes(other)
    source = tiny.sources[0].model_copy(update={"sha256": "0" * 64})
    with pytest.raises(FetchError, match=r"is not the published cgqa\.zip") as caught:
        make(tiny).download([tiny.model_copy(update={"sources": (source,)})])
    assert "Delete it" in caught.value.hint
    assert archive.read_bytes() == other
    archive.unlink()
    make(tiny).download([tiny])
    shutil.rmtree(tmp_path / "data/c-gqa")
    archive.write_bytes(other)
    with pytest.raises(FetchError, match=r"differs from the cgqa\.zip downloaded earlier"):
        make(tiny).download([tiny])
    assert not (tmp_path / "data/c-gqa").exists()


def test_a_broken_lock_file_is_named(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/refiner.lock").write_text("{")
    with pytest.raises(FetchError, match=r"refiner\.lock cannot be read"):
        make(tiny).download([tiny])


def test_a_damaged_archive_is_thrown_away_and_fetched_anew(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    good = site.pages["/cgqa.zip"].body
    site.put("/cgqa.zip", good[:-200])
    with pytest.raises(FetchError, match="is damaged"):
        make(tiny).download([tiny])
    assert not (tmp_path / "data/archives/cgqa.zip").exists()
    site.put("/cgqa.zip", good)
    make(tiny).download([tiny])
    assert (tmp_path / "data/c-gqa").is_dir()


def test_archives_are_deleted_on_request_unless_another_dataset_needs_them(
    both: tuple[Dataset, Dataset], make: Make, tmp_path: Path
) -> None:
    downloader = make(*both)
    downloader.download(both)
    assert [file.name for file in downloader.delete_archives(both[:1])] == ["release_dataset.zip"]
    assert {file.name for file in (tmp_path / "data/archives").iterdir()} == {
        "compositional_split_natural.tar.gz",
        "ut-zap50k-images.zip",
    }


def test_one_dead_link_does_not_keep_another_dataset_back(
    both: tuple[Dataset, Dataset], make: Make, site: Site, tmp_path: Path
) -> None:
    site.pages["/release_dataset.zip"].status = 404
    with pytest.raises(FetchError, match=r"release_dataset\.zip could not be fetched"):
        make(*both).download(both)
    assert (tmp_path / "data/ut-zappos").is_dir()
    assert not (tmp_path / "data/mit-states").exists()


def test_a_plan_tells_sizes_and_changes_nothing(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    (planned,) = make(tiny).plan([tiny])
    assert (planned.size, planned.have) == (len(site.pages["/cgqa.zip"].body), 0)
    assert planned.url == tiny.sources[0].urls[0]
    assert not (tmp_path / "data").exists()


def test_too_little_space_is_said_before_anything_is_fetched(
    make: Make, tiny: Dataset, site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(FetchError, match=r"needs .* has only 1.0 kB left") as caught:
        make(tiny).download([tiny])
    assert "--out" in caught.value.hint
    assert list((tmp_path / "data/archives").iterdir()) == []


# --- by hand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cgqa.zip", "cgqa (1).zip", "whatever.bin"])
def test_an_archive_given_by_hand_is_used_where_it_is(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(site.pages["/cgqa.zip"].body)
    make(tiny).download([tiny], [tmp_path / name])
    assert site.asked == []
    assert load_benchmark(tmp_path / "data/c-gqa").states == ("cut", "ripe")
    assert list((tmp_path / "data/archives").iterdir()) == []
    assert "cgqa.zip" in json.loads((tmp_path / "data/refiner.lock").read_text())["archives"]


def test_what_is_not_given_by_hand_is_fetched(
    both: tuple[Dataset, Dataset], make: Make, site: Site, tmp_path: Path
) -> None:
    (tmp_path / "mit.zip").write_bytes(site.pages["/release_dataset.zip"].body)
    make(*both).download(both[:1], [tmp_path / "mit.zip"])
    assert site.asked_for("/release_dataset.zip") == []
    assert site.asked_for("/splits.tar.gz") != []


def test_a_file_of_another_dataset_is_refused(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(published.zipped({"holiday.jpg": b""}))
    with pytest.raises(InputError, match="not an archive of C-GQA") as caught:
        make(tiny).download([tiny], [tmp_path / "x.zip"])
    assert "cgqa.zip" in caught.value.hint


def test_archives_by_hand_belong_to_one_dataset(
    both: tuple[Dataset, Dataset], make: Make, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="one dataset"):
        make(*both).download(both, [tmp_path / "x.zip"])


# --- hostile content --------------------------------------------------------------------------------


class Command:
    """A pickle that would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def test_hostile_metadata_is_refused_and_nothing_it_names_runs(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    pairs = published.tiny_pairs()
    files = published.split_files("", pairs, [])
    files["metadata_compositional-split-natural.t7"] = published.metadata(
        [Command(f"touch {tmp_path / 'evil'}")]
    )  # type: ignore[list-item]
    site.put("/cgqa.zip", published.zipped(files))
    with pytest.raises(DatasetError, match="cannot be read safely") as caught:
        make(tiny).download([tiny])
    assert caught.value.exit_code == 3
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "data/c-gqa").exists()


@pytest.mark.parametrize("image", ["../../evil.jpg", "/evil.jpg", "a/../../evil.jpg"])
def test_metadata_cannot_write_outside(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path, image: str
) -> None:
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    rows[0]["_image"], rows[0]["image"] = rows[0]["image"], image
    files = published.split_files("", pairs, rows)
    files |= {f"images/{row.get('_image', row['image'])}": published.photo() for row in rows}
    site.put("/cgqa.zip", published.zipped(files))
    with pytest.raises(DatasetError, match="refused"):
        make(tiny).download([tiny])
    assert list(tmp_path.rglob("evil*")) == []


def test_an_image_that_no_archive_holds_is_named(make: Make, tiny: Dataset, site: Site) -> None:
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    files = published.split_files("", pairs, rows)
    files |= {f"images/{row['image']}": published.photo() for row in rows[1:]}
    site.put("/cgqa.zip", published.zipped(files))
    with pytest.raises(FetchError, match=r"1 of the 8 images .* are missing, for example 'test0\.jpg'"):
        make(tiny).download([tiny])


def test_an_unreadable_image_is_listed_and_not_replaced(
    make: Make, tiny: Dataset, site: Site, tmp_path: Path
) -> None:
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    files = published.split_files("", pairs, rows)
    files |= {f"images/{row['image']}": published.photo() for row in rows}
    files["images/test0.jpg"] = published.photo()[:200]
    site.put("/cgqa.zip", published.zipped(files))
    (outcome,) = make(tiny).download([tiny])
    assert outcome.verification is not None
    assert [fault.path for fault in outcome.verification.unreadable] == ["test0.jpg"]
    assert make(tiny).place.status(tiny).unreadable == 1
    assert (tmp_path / "data/c-gqa/images/test0.jpg").read_bytes() == published.photo()[:200]


def test_wrong_counts_are_not_published(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    wrong = tiny.model_copy(update={"expected": tiny.expected.model_copy(update={"train_images": 5})})
    with pytest.raises(FetchError, match="train images: 4, expected 5") as caught:
        make(wrong).download([wrong])
    assert caught.value.exit_code == 4
    assert not (tmp_path / "data/c-gqa").exists()
    assert not (tmp_path / "data/.c-gqa.partial").exists()


# --- verified again ------------------------------------------------------------------------------------


def test_verification_finds_what_happened_since(make: Make, tiny: Dataset, tmp_path: Path) -> None:
    downloader = make(tiny)
    downloader.download([tiny])
    assert downloader.place.status(tiny).verified
    (tmp_path / "data/c-gqa/images/val0.jpg").unlink()
    with pytest.raises(FetchError, match=r"1 image is missing, for example 'val0.jpg'"):
        downloader.verify(tiny)
    status = downloader.place.status(tiny)
    assert status.present
    assert not status.verified


def test_every_named_dataset_is_verified_whatever_the_first_shows(
    both: tuple[Dataset, Dataset], make: Make, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"mit-states is not in .*ut-zappos is not in"):
        make(*both).reverify(both)


def test_a_folder_that_cannot_be_written_to_is_verified(
    make: Make, tiny: Dataset, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tiny).download([tiny])

    def read_only(*_: object) -> None:
        raise FetchError("Writing failed: read-only file system.")

    monkeypatch.setattr(DatasetsDir, "mark_verified", read_only)
    monkeypatch.setattr(DatasetsDir, "unmark_verified", read_only)
    assert make(tiny).verify(tiny) is not None
    assert log.notices[-1] == (
        "The result is not kept with the dataset: Writing failed: read-only file system."
    )
    (tmp_path / "data/c-gqa/images/val0.jpg").unlink()
    with pytest.raises(FetchError, match="1 image is missing"):
        make(tiny).verify(tiny)


def test_a_folder_that_was_put_there_by_hand_is_verified_first(
    make: Make, tiny: Dataset, tmp_path: Path
) -> None:
    make(tiny).download([tiny])
    (tmp_path / "data/c-gqa/refiner.json").unlink()
    (outcome,) = make(tiny).download([tiny])
    assert outcome.already
    assert outcome.verification is not None
    assert make(tiny).place.status(tiny).verified


def test_what_is_not_there_cannot_be_verified(make: Make, tiny: Dataset) -> None:
    with pytest.raises(FetchError, match="c-gqa is not in"):
        make(tiny).verify(tiny)


# --- processes ------------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from pathlib import Path
from refiner_cli.data.download.catalog import Catalogue
from refiner_cli.data.download.downloader import Downloader
from refiner_cli.data.download.datasets_dir import DatasetsDir

catalogue = Catalogue.model_validate_json(Path(sys.argv[1]).read_text())
stage, after = sys.argv[3], int(sys.argv[4])

def report(event):
    print(event, flush=True)
    if getattr(event, "stage", None) == stage and event.done > after:
        os.kill(os.getpid(), signal.SIGKILL)

downloader = Downloader(DatasetsDir(Path(sys.argv[2])), catalogue, report=report)
if stage == "publish":
    replace = Path.replace
    def kill_or_replace(part, target):
        os.kill(os.getpid(), signal.SIGKILL) if part.is_dir() else replace(part, target)
    Path.replace = kill_or_replace
downloader.download(list(catalogue.datasets.values()))
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a process that downloads, and kills itself with SIGKILL at the given point."""
    running: list[subprocess.Popen[str]] = []

    def run(*datasets: Dataset, stage: str = "", after: int = 0) -> subprocess.Popen[str]:
        known = Catalogue(datasets={dataset.name: dataset for dataset in datasets})
        (tmp_path / "catalogue.json").write_text(known.model_dump_json())
        (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
        arguments = [tmp_path / "script.py", tmp_path / "catalogue.json", tmp_path / "data", stage, after]
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("stage", "after"), [("fetch", 5000), ("check", 0), ("unpack", 2000), ("verify", 0), ("publish", 0)]
)
def test_kill_9_anywhere_and_the_next_run_finishes(
    start: Start,
    make: Make,
    tiny: Dataset,
    site: Site,
    tmp_path: Path,
    *,
    stage: str,
    after: int,
) -> None:
    reference = tmp_path / "reference"
    Downloader(DatasetsDir(reference), make(tiny).catalogue).download([tiny])
    body = len(site.pages["/cgqa.zip"].body)
    process = start(tiny, stage=stage, after=after)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "data/c-gqa").exists()
    make(tiny).download([tiny])
    made, expected = everything(tmp_path / "data/c-gqa"), everything(reference / "c-gqa")
    assert made.pop("refiner.json")
    assert expected.pop("refiner.json")
    assert made == expected
    asked = site.asked_for("/cgqa.zip")[1:]  # after the reference's
    if stage == "fetch":
        assert asked == [None, asked[1]]
        assert 5000 < int(str(asked[1]).strip("bytes=-")) < body
    else:
        assert asked == [None]


def test_an_unpacked_image_is_not_unpacked_again_after_a_kill(
    start: Start, make: Make, tiny: Dataset, tmp_path: Path
) -> None:
    start(tiny, stage="unpack", after=2000).wait()
    before = {f.name: f.stat().st_ino for f in (tmp_path / "data/.c-gqa.partial/images").iterdir()}
    assert 0 < len(before) < 8
    make(tiny).download([tiny])
    after = {f.name: f.stat().st_ino for f in (tmp_path / "data/c-gqa/images").iterdir()}
    assert before.items() <= after.items()


def test_two_processes_at_once_fetch_once(start: Start, tiny: Dataset, site: Site, tmp_path: Path) -> None:
    site.pages["/cgqa.zip"].gate = gate = Event()
    first, second = start(tiny), start(tiny)
    waiting = {"first": False, "second": False}

    def watch(name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if "Another process holds the lock on cgqa.zip" in line:
                waiting[name] = True
                gate.set()

    threads = [Thread(target=watch, args=pair) for pair in (("first", first), ("second", second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert sorted(waiting.values()) == [False, True]
    assert load_benchmark(tmp_path / "data/c-gqa").states == ("cut", "ripe")
    assert (tmp_path / "data/archives/cgqa.zip").read_bytes() == site.pages["/cgqa.zip"].body


def test_the_lock_of_a_killed_process_is_free(start: Start, make: Make, tiny: Dataset, log: Log) -> None:
    start(tiny, stage="verify").wait()
    make(tiny).download([tiny])
    assert log.notices == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB, or a skip where this process may not mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", place],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_ends_in_one_sentence_and_a_larger_one_goes_on(
    small_disk: Path, tiny: Dataset, site: Site, log: Log
) -> None:
    """The server does not tell the size, so that the check before the start cannot help."""
    pairs = published.tiny_pairs()
    rows = published.rows_of(pairs, "{split}{number}.jpg")
    padding = {"padding.bin": random.Random(0).randbytes(150_000)}
    site.put("/cgqa.zip", published.c_gqa(pairs, rows, "", padding), length=False)
    downloader = Downloader(
        DatasetsDir(small_disk), Catalogue(datasets={tiny.name: tiny}), report=log, policy=RetryPolicy(1, 0)
    )
    with pytest.raises(FetchError, match=r"The disk became full while fetching cgqa\.zip"):
        downloader.download([tiny])
    assert not (small_disk / "c-gqa").exists()
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    downloader.download([tiny])
    assert (small_disk / "c-gqa").is_dir()
    assert [asked for asked in site.asked_for("/cgqa.zip") if asked]


def test_a_disk_that_fills_while_unpacking(small_disk: Path, tiny: Dataset, site: Site) -> None:
    subprocess.run(["mount", "-o", "remount,size=28k", small_disk], check=True)
    downloader = Downloader(DatasetsDir(small_disk / "in"), Catalogue(datasets={tiny.name: tiny}))
    archive = small_disk.parent / "cgqa.zip"
    archive.write_bytes(site.pages["/cgqa.zip"].body)
    with pytest.raises(FetchError, match=r"disk became full|has only"):
        downloader.download([tiny], [archive])
    assert not (small_disk / "in/c-gqa").exists()
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    downloader.download([tiny], [archive])
    assert (small_disk / "in/c-gqa").is_dir()
