from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin

import pytest
from PIL import Image

from refiner_cli.data.create.photos import clean_name
from refiner_cli.data.create.tables import read_table
from refiner_cli.inference import gallery
from refiner_cli.inference.formats import read_rows
from refiner_cli.inference.gallery import link, write_gallery
from refiner_cli.inference.scan import ImageFile

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NAMES = ["a.jpg", "two words & 100%.jpg", "javascript:alert(1).jpg", "</script><b>.jpg", "sub/ä #1?.jpg"]


def predicted(path: str) -> dict[str, Any]:
    one = {"state": "<b>wet", "object": "dog", "score": 1.0, "probability": 0.5, "seen": False}
    return {"path": path, "status": "ok", "error": None, "predictions": [one], "states": [], "objects": []}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Rows of five photos in different folders than the page, of one that is gone, and of a damaged one."""
    for name in NAMES:
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (300, 200), (90, 120, 30)).save(file, "JPEG")
    (tmp_path / "photos" / "damaged.jpg").write_bytes(b"no image")
    file = tmp_path / "rows.jsonl"
    rows = [predicted(name) for name in [*NAMES, "gone.jpg", "damaged.jpg"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def locate_in(folder: Path) -> Callable[[Sequence[str]], Iterator[ImageFile]]:
    return lambda names: (ImageFile(folder / name, name) for name in names)


def cards(page: Path) -> list[Any]:
    text = page.read_text("utf-8")
    found: list[Any] = json.loads(text.partition("const rows = ")[2].partition(";\nconst")[0])
    return found


def test_a_card_links_to_its_photo_and_says_if_that_is_gone(output: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "page.html"
    assert write_gallery(page, "Rows", read_rows(output), locate_in(tmp_path / "photos"), workers=0) == 7
    for path, _, picture, predictions, photo, missing, *_ in cards(page):
        if path == "gone.jpg":
            assert (picture, photo, missing) == ("", "", "the file is gone")
            continue
        opened = unquote(urljoin(page.as_uri(), photo).removeprefix("file://"))
        assert Path(opened).samefile(tmp_path / "photos" / path)
        assert (picture == "", missing) == (
            (True, "cannot be read") if path == "damaged.jpg" else (False, "")
        )
        assert predictions == [["<b>wet", "dog", 0.5, 0]]
    text = page.read_text("utf-8")
    assert text.count("</script>") == 1
    assert "<b>" not in text


def test_a_link_never_has_a_scheme() -> None:
    assert ":" not in link(Path("page.html"), Path("javascript:alert(1)"))


def test_images_beyond_the_limit_are_counted(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MAX_CARDS", 2)
    page = tmp_path / "page.html"
    assert write_gallery(page, "Rows", read_rows(output), locate_in(tmp_path / "photos"), workers=0) == 2
    assert len(cards(page)) == 2
    assert "5 more images are not shown" in page.read_text("utf-8")


ENTER = """
for (const article of document.querySelectorAll("article")) {
  const inputs = article.querySelectorAll(".correction input");
  inputs.forEach((input, i) => {
    input.value = ["dry", 'a "cat"'][i];
    input.dispatchEvent(new Event("change"));
  });
}
document.body.dataset.csv = encodeURIComponent(correctionsCsv());
document.body.dataset.button = byId("save").textContent;
"""


def shown_by_browser(page: Path, script: str) -> str:
    """The page's elements after a browser ran the script at its end."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    page.write_text(page.read_text("utf-8") + f"<script>{script}</script>", "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    return subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=True,
        text=True,
    ).stdout


def test_images_are_chosen_by_their_verdict(tmp_path: Path) -> None:
    page, found = tmp_path / "page.html", []
    for number, level in enumerate(("pair", "object", "object", "unknown")):
        named = {"verdict_state": None, "verdict_object": "cat" if level == "object" else None}
        found.append(predicted(f"{number}.jpg") | {"verdict": level, **named})
    write_gallery(page, "Rows", found, locate_in(tmp_path), workers=0)
    dom = shown_by_browser(
        page, 'byId("verdict").value = "object"; byId("verdict").dispatchEvent(new Event("input"));'
    )
    offered = re.search(r'<select id="verdict"([^>]*)>(.*?)</select>', dom, re.DOTALL)
    assert offered is not None
    assert "hidden" not in offered.group(1)
    assert re.findall(r">([^<]+)</option>", offered.group(2)) == [
        "any verdict", "pair sure (1)", "object only (2)", "unknown (1)",
    ]  # fmt: skip
    assert re.findall(r'class="verdict (\w+)">([^<]+)<', dom) == [("object", "cat (object only)")] * 2
    assert "2 of 4 images" in dom


def test_corrections_are_saved_as_a_table_for_dataset_create(output: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "page.html"
    write_gallery(page, "Rows", read_rows(output), locate_in(tmp_path / "photos"), workers=0)
    dom = shown_by_browser(page, ENTER)
    found = re.search(r'data-csv="([^"]*)" data-button="([^"]*)"', dom)
    assert found is not None
    assert found.group(2) == "Save 5 corrections"  # neither what is gone nor what is damaged
    table = page.parent / "corrections.csv"
    table.write_text(unquote(found.group(1)), "utf-8")
    photos = read_table(table).photos
    assert {photo.pair for photo in photos} == {("dry", clean_name('a "cat"'))}
    expected = {(tmp_path / "photos" / name).resolve() for name in NAMES}
    assert {photo.file.resolve() for photo in photos} == expected
