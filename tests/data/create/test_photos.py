from __future__ import annotations

import json
from pathlib import Path

import pytest

from refiner_cli.data.create.photos import Photo, clean_name
from refiner_cli.data.create.sources import read_photos
from refiner_cli.errors import DatasetError

JSON_LINES = """
{"path": "a/1.jpg", "state": "red", "object": "bell pepper", "split": "train"}

{"path": "2.jpg", "state": "Old", "object": "cup", "split": "test"}
"""


def touch(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    return folder


def found(source: Path, folder: Path) -> list[tuple[str, tuple[str, str]]]:
    return [(photo.file.relative_to(folder).as_posix(), photo.pair) for photo in read_photos(source).photos]


def test_folders_named_after_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/1.jpg", "red_apple/more/2.PNG", "cut pear/3.webp")
    touch(tmp_path, "red_apple/notes.txt", "red_apple/.4.jpg", ".git/5.jpg", "empty/readme.md")
    assert found(tmp_path, tmp_path) == [
        ("cut pear/3.webp", ("cut", "pear")),
        ("red_apple/1.jpg", ("red", "apple")),
        ("red_apple/more/2.PNG", ("red", "apple")),
    ]


def test_folders_of_states_with_folders_of_objects(tmp_path: Path) -> None:
    touch(tmp_path, "red/bell pepper/1.jpg", "red/apple/2.jpg", "light_blue/cup/3.jpg")
    assert found(tmp_path, tmp_path) == [
        ("light_blue/cup/3.jpg", ("light.blue", "cup")),
        ("red/apple/2.jpg", ("red", "apple")),
        ("red/bell pepper/1.jpg", ("red", "bell.pepper")),
    ]


def test_both_ways_at_once_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "red/apple/1.jpg", "green_pear/2.jpg")
    with pytest.raises(DatasetError, match=r"mixes state/object folders \(red\) with .* \(green_pear\)"):
        read_photos(tmp_path)


def test_names_of_three_words_are_cut_where_the_others_are(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/1.jpg", "red_bell_pepper/2.jpg", "light_blue_apple/3.jpg")
    pairs = {photo.pair for photo in read_photos(tmp_path).photos}
    assert pairs == {("red", "apple"), ("red", "bell.pepper"), ("light.blue", "apple")}


def test_a_name_that_can_be_cut_in_two_ways_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/1.jpg", "old_bell_pepper/2.jpg")
    with pytest.raises(DatasetError, match=r"'old' \+ 'bell.pepper' or 'old.bell' \+ 'pepper'") as caught:
        read_photos(tmp_path)
    assert "CSV" in caught.value.hint


def test_a_name_of_one_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'apples' is not of the form state_object"):
        read_photos(touch(tmp_path, "apples/1.jpg"))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no images"):
        read_photos(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("t.csv", "\ufeffpath,state,object,split\na/1.jpg,red,bell pepper,train\n\n2.jpg,Old,cup,test\n"),
        ("t.tsv", "object\tstate\tsplit\tpath\nbell pepper\tred\ttrain\ta/1.jpg\ncup\tOld\ttest\t2.jpg\n"),
        ("t.jsonl", JSON_LINES),
    ],
)
def test_tables(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, "utf-8")
    assert read_photos(tmp_path / file).photos == (
        Photo(tmp_path / "a/1.jpg", ("red", "bell.pepper"), "train"),
        Photo(tmp_path / "2.jpg", ("Old", "cup"), "test"),
    )


def test_the_split_may_be_left_to_us(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,state,object\n1.jpg,red,cup\n")
    assert read_photos(tmp_path / "t.csv").photos == (Photo(tmp_path / "1.jpg", ("red", "cup")),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,state,objekt\n1.jpg,red,cup\n", r"no column 'object'. Did you mean it by 'objekt'\?"),
        ("path,state,object,State\n1.jpg,red,cup,red\n", "the column 'state' twice"),
        ("path,state,object\n1.jpg,,cup\n", "line 2: the state is missing"),
        ("path,state,object\n1.jpg,red\n", "line 2: the object is missing"),
        ("path,state,object\n1.jpg,red,cup,train\n", "line 2: 4 values for 3 columns"),
        ("path,state,object\n1.jpg,red,_\n", "line 2: a state and an object need a letter"),
        (
            "path,state,object,split\n1.jpg,red,cup,dev\n",
            "line 2: 'dev' is not a split. The splits are train, val, test.",
        ),
        ("path,state,object,split\n1.jpg,red,cup,train\n2.jpg,red,cup,\n", "for example .*2.jpg"),
        ('path,state,object\n"1.jpg,red,cup\n', "line 2: not readable as CSV"),
        ("path,state,object\n", "lists no images"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_photos(tmp_path / "t.csv")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_the_delimiter_is_found_and_other_columns_are_ignored(
    tmp_path: Path, delimiter: str, suffix: str
) -> None:
    rows = [
        ["PATH", " State ", "oBJECT", "Note", "Split"],
        ["1.jpg", "red", "bell pepper", "a, b; c", "Train"],
    ]
    text = "\r\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    (tmp_path / f"t{suffix}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = read_photos(tmp_path / f"t{suffix}")
    assert found.photos == (Photo(tmp_path / "1.jpg", ("red", "bell.pepper"), "train"),)
    assert found.notes == ("columns ignored: Note",)


def test_a_table_that_is_not_utf8_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,state,object\n1.jpg,cr\xe8me,cup\n")
    with pytest.raises(DatasetError, match=r"line 2 holds the byte 0xe8\. Save it as UTF-8"):
        read_photos(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "other", ["@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg", "__MACOSX/red_apple/2.jpg", ".thumbnails/3.jpg",
              "#recycle/4.jpg", "$RECYCLE.BIN/5.jpg", "red_apple/@eaDir/6.jpg", "red_apple/._1.jpg",
              "backup/old/readme.txt", "lost+found/7.jpg"]
)  # fmt: skip
def test_what_other_programs_leave_behind_is_passed_over(tmp_path: Path, other: str) -> None:
    touch(tmp_path, "red_apple/1.jpg", "old_car/2.jpg", other)
    found = read_photos(tmp_path)
    assert [photo.file.name for photo in found.photos] == ["2.jpg", "1.jpg"]
    assert found.unlabelled == ()


def test_images_that_refiner_made_are_passed_over(tmp_path: Path) -> None:
    touch(
        tmp_path, "red_apple/1.jpg", "old_car/2.jpg", "red_apple/maps/3.jpg", "red_apple/maps/.refiner-output"
    )
    assert len(read_photos(tmp_path).photos) == 2


@pytest.mark.parametrize("target", [".", "..", "../old_car", "../../photos"])
def test_links_into_the_same_tree_are_not_followed(tmp_path: Path, target: str) -> None:
    photos = touch(tmp_path / "photos", "red_apple/1.jpg", "old_car/2.jpg")
    (photos / "red_apple/link").symlink_to(target)
    found = read_photos(photos)
    assert len(found.photos) == 2
    assert found.notes == ("1 link to a folder of the same tree not followed",)


def test_links_to_folders_elsewhere_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "store/1.jpg", "photos/old_car/2.jpg")
    for name in ("red_apple", "red_pear"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "store")
    assert [photo.pair for photo in read_photos(tmp_path / "photos").photos] == [
        ("old", "car"), ("red", "apple"),
    ]  # fmt: skip


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "TEST")])
@pytest.mark.parametrize("layout", ["red_apple", "red/apple"])
def test_split_folders_are_taken_as_the_splits_and_said(
    tmp_path: Path, names: tuple[str, ...], layout: str
) -> None:
    touch(tmp_path, *(f"{name}/{layout}/{number}.jpg" for number, name in enumerate(names)))
    found = read_photos(tmp_path)
    assert {(photo.file.stem, photo.pair, photo.split) for photo in found.photos} == {
        ("0", ("red", "apple"), "train"), ("1", ("red", "apple"), "val"), ("2", ("red", "apple"), "test"),
    }  # fmt: skip
    assert "taken as the splits" in found.notes[0]


def test_split_folders_beside_others_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/red_apple/1.jpg", "old_car/2.jpg")
    with pytest.raises(DatasetError, match="the split folder 'train' beside 'old_car'"):
        read_photos(tmp_path)


def test_images_outside_of_the_named_folders_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "0.jpg", "red/1.jpg", "red/apple/2.jpg", "old/car/3.heic", "old/car/notes.txt")
    found = read_photos(tmp_path)
    assert sorted(photo.file.name for photo in found.photos) == ["2.jpg", "3.heic"]
    assert sorted(file.name for file in found.unlabelled) == ["0.jpg", "1.jpg"]
    assert found.notes == ("files that are not images passed over: .txt (1)",)
    with pytest.raises(DatasetError, match="holds 1 images, but none in a folder that names a pair"):
        read_photos(touch(tmp_path / "flat", "1.jpg"))


def test_spellings_of_one_name_become_one_and_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/1.jpg", "red_pear/2.jpg", "Red_Apple/3.jpg", "half-eaten_pear/4.jpg")
    touch(tmp_path, "half eaten_apple/5.jpg", "half-eaten_Apple/6.jpg")
    found = read_photos(tmp_path)
    assert {photo.pair for photo in found.photos} == {
        ("red", "apple"), ("red", "pear"), ("half-eaten", "pear"), ("half-eaten", "apple"),
    }  # fmt: skip
    assert set(found.notes) == {
        "the state 'Red' counts as 'red'", "the state 'half.eaten' counts as 'half-eaten'",
        "the object 'Apple' counts as 'apple'",
    }  # fmt: skip


def test_labels_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"path": "1.jpg", "state": "\\udce9", "object": "cup"}')
    with pytest.raises(DatasetError, match=r"line 1: the name '\\udce9 cup' is not UTF-8"):
        read_photos(tmp_path / "t.jsonl")
    try:
        touch(tmp_path / "photos", "caf\udce9_cup/1.jpg")
    except OSError:
        pytest.skip("the file system has names in UTF-8 only")
    with pytest.raises(DatasetError, match="is not UTF-8"):
        read_photos(tmp_path / "photos")


def test_a_dataset_is_not_taken_for_photos(tmp_path: Path) -> None:
    touch(tmp_path, "compositional-split-natural/train_pairs.txt", "images/red_apple/1.jpg")
    with pytest.raises(DatasetError, match=r"is a dataset already\. Train on it"):
        read_photos(tmp_path)


@pytest.mark.parametrize("line", ["[1]", "{", json.dumps({"path": "1.jpg"})])
def test_mistakes_in_json_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=r"t\.jsonl"):
        read_photos(tmp_path / "t.jsonl")


def test_labels_of_json_are_text_or_numbers(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"path": "a.jpg", "state": 0, "object": 12}\n')
    assert [photo.pair for photo in read_photos(file).photos] == [("0", "12")]
    file.write_text('{"path": "a.jpg", "state": ["red"], "object": "apple"}\n')
    with pytest.raises(DatasetError, match=r'line 1: the state is \["red"\], which is not text'):
        read_photos(file)


def test_what_nested_folders_of_two_words_are_taken_for_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "red_apple/phone/1.jpg", "old_car/camera/2.jpg")
    (note,) = read_photos(tmp_path).notes
    assert note.startswith("old_car/camera is read as the state 'old.car' of the object 'camera'")
    touch(tmp_path, "wet/phone/3.jpg")
    assert read_photos(tmp_path).notes == ()


def test_what_is_neither_folder_nor_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="There is no file or folder"):
        read_photos(tmp_path / "nothing")
    with pytest.raises(DatasetError, match="neither a folder nor"):
        read_photos(touch(tmp_path, "x.xlsx") / "x.xlsx")


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [("apple", "apple"), (" bell  pepper", "bell.pepper"), ("a_b", "a.b"), ("_", ""), ("A.b", "A.b")],
)
def test_names_hold_no_white_space(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
