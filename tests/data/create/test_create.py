from __future__ import annotations

import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from refiner_cli.data.benchmark import SPLITS, load_benchmark
from refiner_cli.data.create import create as module
from refiner_cli.data.create.create import Created, Placing, SplitOptions, create_dataset
from refiner_cli.data.create.photos import Photo
from refiner_cli.data.create.sources import read_photos
from refiner_cli.data.download.verify import verify
from refiner_cli.data.progress import StoppedError
from refiner_cli.errors import DatasetError
from tests.data.conftest import Log
from tests.data.download import published

Run = Callable[..., Created]
PAIRS = [(s, o) for s in ("cut", "ripe", "old") for o in ("apple", "pear", "plum")]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten photos of each of nine pairs."""
    for index, (state, obj) in enumerate(PAIRS):
        folder = tmp_path / "photos" / f"{state}_{obj}"
        folder.mkdir(parents=True)
        for number in range(10):
            (folder / f"{number}.jpg").write_bytes(published.photo(number) + bytes([index, number]))
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path: Path, log: Log, stop: Event) -> Run:
    def build(
        photos: Sequence[Photo], options: SplitOptions | None = None, placing: Placing = "link"
    ) -> Created:
        return create_dataset(
            photos,
            tmp_path / "out",
            options or SplitOptions(),
            placing=placing,
            workers=1,
            report=log,
            stop=stop,
        )

    return build


def test_photos_become_a_benchmark(photos: Path, run: Run, tmp_path: Path, log: Log, stop: Event) -> None:
    created = run(read_photos(photos).photos)
    assert (created.linked, created.copied, created.left_out) == (90, 0, ())
    benchmark = load_benchmark(tmp_path / "out")
    train = set(benchmark.pairs["train"])
    assert {s for s, _ in train} == set(benchmark.states) == {"cut", "ripe", "old"}
    assert {o for _, o in train} == set(benchmark.objects) == {"apple", "pear", "plum"}
    assert len(train) == 7
    assert len(set(benchmark.pairs["val"]) - train) == len(set(benchmark.pairs["test"]) - train) == 1
    assert sum(len(benchmark.samples[split]) for split in SPLITS) == 90
    again = verify(tmp_path / "out", None, workers=1, report=log, stop=stop)
    assert again.usable
    assert (again.notes, again.unreadable) == ((), ())
    assert again.fingerprint == created.verification.fingerprint
    assert log.progress("link")[-1].done == 90


def test_the_same_seed_gives_the_same_dataset(photos: Path, log: Log, stop: Event, tmp_path: Path) -> None:
    prints = [
        create_dataset(
            read_photos(photos).photos,
            tmp_path / f"out{n}",
            SplitOptions(seed=seed),
            placing="link",
            workers=1,
            report=log,
            stop=stop,
        ).verification.fingerprint
        for n, seed in enumerate((1, 1, 2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_links_share_the_bytes_and_copies_do_not(photos: Path, run: Run, tmp_path: Path) -> None:
    run(read_photos(photos).photos, placing="link")
    assert all(path.stat().st_nlink == 2 for path in (tmp_path / "out/images").rglob("*.jpg"))
    (tmp_path / "out").rename(tmp_path / "linked")
    created = run(read_photos(photos).photos, placing="copy")
    assert (created.linked, created.copied) == (0, 90)
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "out/images").rglob("*.jpg"))


def test_where_links_are_impossible_images_are_copied(
    photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    assert run(read_photos(photos).photos).copied == 90
    assert len(list((tmp_path / "out/images").rglob("*.jpg"))) == 90


def test_splits_of_a_table_are_kept(photos: Path, run: Run, tmp_path: Path) -> None:
    rows = ["path,state,object,split"]
    for state, obj in PAIRS:
        splits = ["test"] * 10 if (state, obj) == ("old", "plum") else ["train"] * 7 + ["val"] * 3
        rows += [f"{state}_{obj}/{n}.jpg,{state},{obj},{split}" for n, split in enumerate(splits)]
    (photos / "table.csv").write_text("\n".join(rows))
    run(read_photos(photos / "table.csv").photos, SplitOptions(unseen_fraction=0.9))
    benchmark = load_benchmark(tmp_path / "out")
    assert benchmark.pairs["test"] == (("old", "plum"),)
    assert {split: len(found) for split, found in benchmark.samples.items()} == {
        "train": 56,
        "val": 24,
        "test": 10,
    }


def test_splits_of_a_table_that_leave_a_name_untrained_are_refused(
    photos: Path, run: Run, tmp_path: Path
) -> None:
    found = [
        Photo(p.file, p.pair, "test" if p.pair[0] == "old" else "val" if p.file.stem == "0" else "train")
        for p in read_photos(photos).photos
    ]
    with pytest.raises(DatasetError, match=r"but 'old' would not: .* 'old apple', 'old pear', 'old plum'"):
        run(found)
    assert not (tmp_path / "out").exists()


def test_named_pairs_are_unseen(photos: Path, run: Run, tmp_path: Path) -> None:
    run(read_photos(photos).photos, SplitOptions(unseen=(("old", "plum"), ("cut", "apple"))))
    benchmark = load_benchmark(tmp_path / "out")
    assert set(PAIRS) - set(benchmark.pairs["train"]) == {("old", "plum"), ("cut", "apple")}


def test_photos_of_one_name_from_two_folders_are_both_there(tmp_path: Path, run: Run) -> None:
    found = []
    for number in range(8):
        for place, name in enumerate(("a/x.jpg", "b/X.jpg", "b/x")):
            file = tmp_path / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(published.photo(number) + bytes([number, place]))
            found.append(Photo(file, ("cut" if number % 2 else "old", "apple" if number < 4 else "pear")))
    run(found, SplitOptions(unseen_fraction=0.25))
    names = [path.name for path in (tmp_path / "out/images").rglob("*") if path.is_file()]
    assert len(names) == len(found)
    assert {"x.jpg", "X-2.jpg", "x-3.jpg"} <= set(names)
    folders = Counter(f"{p.parent.name}/{p.name}".casefold() for p in (tmp_path / "out/images").rglob("*"))
    assert set(folders.values()) == {1}


def test_a_name_in_two_unicode_forms_never_overwrites_a_photo(
    photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed, decomposed = photos / "cut_apple/\u00e9.jpg", photos / "cut_apple/more/e\u0301.jpg"
    decomposed.parent.mkdir()
    for number, file in enumerate((composed, decomposed)):
        file.write_bytes(published.photo(20) + bytes([number]))
    run(read_photos(photos).photos)
    names = [unicodedata.normalize("NFC", f.name) for f in (tmp_path / "out/images/cut_apple").iterdir()]
    assert {"\u00e9.jpg", "\u00e9-2.jpg"} <= set(names)  # macOS takes both forms for one name
    # A file system that finds more names equal than these rules do.
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(module, "_free", lambda path, _: "/".join((path.split("/")[0], "one.jpg")))
    before = {file: file.read_bytes() for file in photos.rglob("*.jpg")}
    for placing in ("link", "copy"):
        with pytest.raises(DatasetError, match="cannot be written"):
            run(read_photos(photos).photos, placing=placing)
    assert before == {file: file.read_bytes() for file in photos.rglob("*.jpg")}


def test_names_that_no_path_can_hold_stay_in_the_lists(photos: Path, run: Run, tmp_path: Path) -> None:
    found = [
        Photo(p.file, (p.pair[0], p.pair[1].replace("plum", "a/b:c?"))) for p in read_photos(photos).photos
    ]
    run(found)
    benchmark = load_benchmark(tmp_path / "out")
    assert "a/b:c?" in benchmark.objects
    assert {path.name for path in benchmark.images.iterdir()} >= {"old_a_b_c_", "cut_apple"}


def test_images_that_cannot_be_read_are_left_out_and_told(photos: Path, run: Run, tmp_path: Path) -> None:
    bad = photos / "cut_pear/3.jpg"
    bad.write_bytes(published.photo()[:150])
    created = run(read_photos(photos).photos)
    assert [fault.path for fault in created.left_out] == [str(bad)]
    assert sum(len(found) for found in load_benchmark(tmp_path / "out").samples.values()) == 89


def test_an_unreadable_image_that_is_listed_under_two_paths_is_left_out(
    photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    Path("cut_apple/torn.jpg").write_bytes(b"\xff\xd8\xff")
    found = read_photos(photos).photos
    torn = next(photo for photo in found if photo.file.name == "torn.jpg")
    run([replace(torn, file=Path("cut_apple/torn.jpg")), *found])
    assert not list((tmp_path / "out/images").rglob("torn*"))


def test_an_image_that_is_not_there_is_an_error(photos: Path, run: Run) -> None:
    with pytest.raises(DatasetError, match=r"1 of the \d+ images listed does not exist, such as .*gone\.jpg"):
        run([*read_photos(photos).photos, Photo(photos / "gone.jpg", ("cut", "pear"))])


def test_too_few_images_are_told(photos: Path, run: Run) -> None:
    with pytest.raises(DatasetError, match="The split val would be empty: images: 9, pairs: 9"):
        run(
            [photo for photo in read_photos(photos).photos if photo.file.stem == "1"],
            SplitOptions(unseen_fraction=0.1),
        )


def test_a_folder_in_use_is_not_touched(photos: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(DatasetError, match="exists already"):
        run(read_photos(photos).photos)
    (tmp_path / "out/mine.txt").unlink()
    run(read_photos(photos).photos)
    assert load_benchmark(tmp_path / "out").states


@pytest.mark.parametrize("error", [OSError("no space"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failure(
    photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "write_metadata", fail)
    with pytest.raises((DatasetError, KeyboardInterrupt)):
        run(read_photos(photos).photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_stops_when_asked(photos: Path, run: Run, stop: Event, tmp_path: Path) -> None:
    stop.set()
    with pytest.raises(StoppedError):
        run(read_photos(photos).photos)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def splits_of_contents(folder: Path) -> dict[bytes, set[str]]:
    """The splits that each content stands in."""
    benchmark = load_benchmark(folder)
    found: dict[bytes, set[str]] = {}
    for split in SPLITS:
        for file in benchmark.paths(split):
            found.setdefault(file.read_bytes(), set()).add(split)
    return found


@pytest.mark.parametrize("way", ["listed twice", "copied", "linked", "symlinked"])
def test_the_same_photo_again_is_used_once_and_named(
    photos: Path, run: Run, tmp_path: Path, way: str
) -> None:
    found = list(read_photos(photos).photos)
    for photo in found[::7]:
        again = photo.file.with_name(f"again-{photo.file.name}")
        if way == "copied":
            again.write_bytes(photo.file.read_bytes())
        elif way == "linked":
            again.hardlink_to(photo.file)
        elif way == "symlinked":
            again.symlink_to(photo.file)
        found.append(Photo(photo.file if way == "listed twice" else again, photo.pair))
    created = run(found)
    assert len(created.repeated) == 13
    assert created.left_out == ()
    assert created.linked == 90
    assert all(len(splits) == 1 for splits in splits_of_contents(tmp_path / "out").values())


def test_a_photo_in_two_splits_of_the_user_stays_in_the_first(photos: Path, run: Run, tmp_path: Path) -> None:
    found = [
        Photo(p.file, p.pair, "test" if p.file.stem in "01" else "val" if p.file.stem in "23" else "train")
        for p in read_photos(photos).photos
    ]
    found += [Photo(p.file, p.pair, "test") for p in found if p.file.stem == "9"]
    created = run(found)
    assert {(each.photo.split, each.same_as.split) for each in created.repeated} == {("test", "train")}
    assert all(len(splits) == 1 for splits in splits_of_contents(tmp_path / "out").values())


def test_a_photo_with_two_labels_is_left_out_and_both_are_named(photos: Path, run: Run) -> None:
    twin = photos / "old_pear/twin.jpg"
    twin.write_bytes((photos / "cut_apple/1.jpg").read_bytes())
    created = run(read_photos(photos).photos)
    assert {(Path(fault.path).name, fault.reason) for fault in created.left_out} == {
        ("1.jpg", f"the same photo is labelled 'old pear' as {twin}"),
        ("twin.jpg", f"the same photo is labelled 'cut apple' as {photos / 'cut_apple/1.jpg'}"),
    }
    assert created.linked == 89


def test_a_state_called_na_keeps_its_images(photos: Path, run: Run, tmp_path: Path) -> None:
    found = [
        Photo(p.file, ("NA" if p.pair[0] == "cut" else p.pair[0], p.pair[1]))
        for p in read_photos(photos).photos
    ]
    run(found)
    benchmark = load_benchmark(tmp_path / "out")
    assert "NA" in benchmark.states
    assert sum(map(len, benchmark.samples.values())) == 90


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_not_a_file_of_pixels_is_left_out_and_never_waited_for(photos: Path, run: Run) -> None:
    os.mkfifo(photos / "cut_apple/pipe.jpg")
    (photos / "cut_apple/self.jpg").symlink_to("self.jpg")
    (photos / "cut_apple/gone.jpg").symlink_to("nowhere.jpg")
    (photos / "cut_apple/null.jpg").symlink_to("/dev/zero")
    (photos / "cut_apple/0.jpg").write_bytes(b"P6 8 8 255 " + bytes(192))
    created = run(read_photos(photos).photos)
    assert sorted(Path(fault.path).name for fault in created.left_out) == [
        "0.jpg", "gone.jpg", "null.jpg", "pipe.jpg", "self.jpg",
    ]  # fmt: skip
    assert created.linked == 89


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_file_names_of_any_bytes_and_length(photos: Path, run: Run, tmp_path: Path) -> None:
    for number, name in enumerate([b"caf\xe9.jpg", b"a" * 251 + b".jpg", "ä".encode() * 125 + b".jpg"]):
        (photos / f"cut_apple/{number}.jpg").rename(photos / "cut_apple" / os.fsdecode(name))
    assert run(read_photos(photos).photos).linked == 90
    names = [path.name for path in (tmp_path / "out/images/cut_apple").iterdir()]
    assert "caf_xe9.jpg" in names
    assert all(len(name.encode()) <= 250 and name.endswith(".jpg") for name in names)
    load_benchmark(tmp_path / "out").fingerprint()


def test_the_unseen_pairs_are_told(photos: Path, run: Run) -> None:
    unseen = run(read_photos(photos).photos, SplitOptions(unseen=(("old", "plum"), ("cut", "apple")))).unseen
    assert {*unseen.val, *unseen.test} == {("old", "plum"), ("cut", "apple")}


def test_grocery_from_its_images_alone(grocery: Path, tmp_path: Path, log: Log, stop: Event) -> None:
    out = tmp_path / "grocery"
    created = create_dataset(
        read_photos(grocery / "images").photos,
        out,
        SplitOptions(),
        placing="copy",
        workers=1,
        report=log,
        stop=stop,
    )
    counts = created.verification.counts
    assert (counts.states, counts.objects) == (6, 21)
    assert (counts.train_pairs, counts.val_unseen_pairs, counts.test_unseen_pairs) == (23, 3, 3)
    benchmark = load_benchmark(out)
    images = [sample.path for split in SPLITS for sample in benchmark.samples[split]]
    assert sorted(images) == sorted(
        p.relative_to(grocery / "images").as_posix() for p in (grocery / "images").rglob("*.jpg")
    )
