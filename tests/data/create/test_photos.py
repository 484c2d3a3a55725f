from __future__ import annotations

import json
from pathlib import Path

import pytest

from refiner_cli.data.create.photos import Photo, clean_name, read_photos
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
    return [(photo.file.relative_to(folder).as_posix(), photo.pair) for photo in read_photos(source)]


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
    pairs = {photo.pair for photo in read_photos(tmp_path)}
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
    assert read_photos(tmp_path / file) == [
        Photo(tmp_path / "a/1.jpg", ("red", "bell.pepper"), "train"),
        Photo(tmp_path / "2.jpg", ("Old", "cup"), "test"),
    ]


def test_the_split_may_be_left_to_us(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,state,object\n1.jpg,red,cup\n")
    assert read_photos(tmp_path / "t.csv") == [Photo(tmp_path / "1.jpg", ("red", "cup"))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,state,objekt\n1.jpg,red,cup\n", r"line 2: unknown column 'objekt'. Did you mean 'object'\?"),
        ("path,state,object\n1.jpg,,cup\n", "line 2: the state is missing"),
        ("path,state,object\n1.jpg,red\n", "line 2: the object is missing"),
        ("path,state,object\n1.jpg,red,cup,train\n", "line 2: unknown column ''"),
        ("path,state,object\n1.jpg,red,_\n", "line 2: a state and an object need a letter"),
        (
            "path,state,object,split\n1.jpg,red,cup,dev\n",
            "line 2: 'dev' is no split. Those are train, val, test.",
        ),
        ("path,state,object,split\n1.jpg,red,cup,train\n2.jpg,red,cup,\n", "2.jpg for one"),
        ('path,state,object\n"1.jpg,red,cup\n', "cannot be read"),
        ("path,state,object\n", "lists no images"),
    ],
)
def test_mistakes_in_a_table_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_photos(tmp_path / "t.csv")


@pytest.mark.parametrize("line", ["[1]", "{", json.dumps({"path": "1.jpg"})])
def test_mistakes_in_json_lines(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(DatasetError, match=r"t\.jsonl"):
        read_photos(tmp_path / "t.jsonl")


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
