"""An index is brought up to date, and loses nothing that is only out of reach; without a model."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from refiner_cli.errors import ModelFileError
from refiner_cli.inference import scan
from refiner_cli.inference.index import Index, IndexInfo, IndexRow
from refiner_cli.inference.index_update import Encoded, IndexChanges, IndexUpdate
from refiner_cli.inference.scan import NO_FILTER, ImageFile
from refiner_cli.inference.sources.content import Failed
from refiner_cli.inference.sources.file_list import FileList
from refiner_cli.inference.sources.places import Places, find_places
from tests.inference.sources.packing import draw_noise, write_zip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw_noise(tmp_path / "photos", 6)
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    info = IndexInfo.empty({}, "m", ["composition"], 4, [], part_size=4)
    return Index.create(tmp_path / "index", info)


def encode(image: ImageFile) -> Encoded:
    version = image.seen_as()
    is_error = isinstance(image.content, Failed) or image.file.is_dir() or version.size is None
    row = IndexRow(image.name, version.size, version.modified, "error" if is_error else "ok")
    return Encoded(row, {"composition": torch.zeros(4)})


def update(index: Index, places: Places) -> IndexChanges:
    with index.locked():
        changes = IndexUpdate(index)
        for image in places.images():
            if changes.wanted(image, image.seen_as()):
                changes.take(encode(image))
        return changes.finish(places.out_of_reach)


def names(index: Index, status: str = "ok") -> list[str]:
    return sorted(row.path for part in index.info.parts for row in index.rows(part) if row.status == status)


def test_an_archive_that_is_damaged_for_a_while_costs_no_vectors(
    index: Index, photos: Path, tmp_path: Path
) -> None:
    archive = write_zip(tmp_path / "photos.zip", photos, sorted(photos.rglob("*.jpg")))
    given = [str(archive), str(photos / "a")]
    assert update(index, find_places(given)).encoded == 9
    before, content = names(index), archive.read_bytes()
    archive.write_bytes(content[:50])
    (photos / "a" / "0000.jpg").unlink()
    changed = update(index, find_places(given))
    assert (changed.kept, changed.dropped, changed.encoded) == (8, 1, 1)
    assert names(index, "error") == [str(archive)]
    archive.write_bytes(content)
    update(index, find_places(given))
    assert names(index, "error") == []
    assert names(index) == [name for name in before if not name.endswith("photos/a/0000.jpg")]


def test_a_folder_that_cannot_be_opened_costs_no_vectors(
    index: Index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = find_places([str(photos)])
    update(index, places)
    before = names(index)
    (photos / "b" / "0001.jpg").unlink()
    list_folder = scan.list_folder
    for closed in ("a", ""):

        def refuse(folder: str, closed: str = closed) -> list[tuple[str, bool]]:
            if folder == f"{photos}/{closed}":
                raise PermissionError(13, "Permission denied")
            return list_folder(folder)

        with monkeypatch.context() as during:
            during.setattr(scan, "list_folder", refuse)
            changed = update(index, find_places([str(photos)]))
        assert (changed.kept, changed.dropped) == ((5, 1) if closed else (6, 0))  # with the row of "a/"
        assert names(index) == [name for name in before if name != "b/0001.jpg"]
    assert update(index, find_places([str(photos)])).dropped == 2  # the rows of the folders
    assert names(index, "error") == []


def test_a_file_of_a_list_that_cannot_be_looked_at_keeps_its_vectors(index: Index, photos: Path) -> None:
    listed = sorted(map(str, photos.rglob("*.jpg")))

    def places() -> Places:
        return Places([FileList(io.BytesIO("\n".join(listed).encode()), NO_FILTER, null=False)])

    update(index, places())
    photos.rename(photos.with_name("unmounted"))
    assert update(index, places()) == IndexChanges(kept=6)
    assert names(index) == listed


def test_an_index_that_changes_while_it_is_read_is_not_called_damaged(index: Index, photos: Path) -> None:
    update(index, find_places([str(photos)]))
    reader = Index.open(index.folder)
    (photos / "a" / "0000.jpg").unlink()
    update(index, find_places([str(photos)]))
    with pytest.raises(ModelFileError, match="was changed by another process") as found:
        reader.rows(reader.info.parts[0])
    assert "Delete" not in str(found.value)
