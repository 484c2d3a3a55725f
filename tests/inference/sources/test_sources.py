"""Every kind of source gives the same images, under names of their own, and an error costs one row."""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import io
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refiner_cli.cli.inputs import name_places
from refiner_cli.data.crop import Crop
from refiner_cli.data.download.patience import Pace
from refiner_cli.errors import InputError, UsageError
from refiner_cli.inference.decode_pool import DecodeResult
from refiner_cli.inference.decoding import decode_batches
from refiner_cli.inference.scan import NO_FILTER, ImageFile, PathFilter
from refiner_cli.inference.sources import web
from refiner_cli.inference.sources.braces import expand_braces
from refiner_cli.inference.sources.content import Failed
from refiner_cli.inference.sources.places import Places, find_again, find_places
from refiner_cli.inference.sources.web import WebContent
from tests.inference.sources.packing import (
    draw_noise,
    serve_bucket,
    serve_folder,
    serve_handler,
    write_image_table,
    write_shards,
    write_tables,
    write_tar,
    write_zip,
    write_zst,
)

CROP = Crop(8, 8)
COUNT = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw_noise(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos once more, as archives, shards and tables."""
    place, files = tmp_path_factory.mktemp("packed"), sorted(photos.rglob("*.jpg"))
    write_zip(place / "photos.zip", photos, files)
    plain = write_tar(place / "photos.tar", photos, files)
    for suffix in ("gz", "xz", "bz2"):
        write_tar(place / f"photos.tar.{suffix}", photos, files, f"w:{suffix}")
    write_zst(place / "photos.tar.zst", plain)
    write_shards(f"{place}/shard-%04d.tar", photos, files)
    write_image_table(place / "photos.parquet", photos, files)
    return place


def decoded(places: Places, workers: int = 0) -> Iterator[tuple[ImageFile, DecodeResult]]:
    for group, results in decode_batches(places.images(), 8, CROP, workers):
        yield from ((queued.image, result) for queued, result in zip(group.wanted, results, strict=True))


def pixels(places: Places, workers: int = 0) -> dict[str, bytes]:
    """What every image shows; "ab/0.jpg" is its name without what stands before it."""
    found = {}
    for image, result in decoded(places, workers):
        assert not isinstance(result, str), (image.name, result)
        name = "/".join(image.name.split("/")[-2:])
        assert name not in found
        found[name] = result.tobytes()
    return found


@pytest.fixture(scope="module")
def expected(photos: Path) -> dict[str, bytes]:
    found = pixels(find_places([str(photos)]))
    assert len(found) == len(set(found.values())) == COUNT
    return found


ARCHIVES = ("zip", "tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst", "parquet")


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_gives_the_images_of_the_folder_under_the_same_names(
    packed: Path, expected: dict[str, bytes], kind: str
) -> None:
    places = find_places([f"{packed}/photos.{kind}"])
    assert pixels(places) == expected
    assert [image.name for image in places.images()] == list(expected)
    seen = [image.seen_as() for image in places.images()]
    assert all(version.size and version.modified for version in seen)


def test_members_are_read_by_decoding_processes_too(packed: Path, expected: dict[str, bytes]) -> None:
    for kind in ("zip", "tar", "tar.gz"):
        assert pixels(find_places([f"{packed}/photos.{kind}"]), workers=1) == expected


def test_shards_are_named_by_a_pattern(packed: Path, expected: dict[str, bytes]) -> None:
    places = find_places([f"{packed}/shard-{{0000..0002}}.tar"])
    assert pixels(places) == expected
    assert {image.name.rpartition("/shard-")[2][:9] for image in places.images()} == {
        "0000.tar/", "0001.tar/", "0002.tar/",
    }  # fmt: skip


def test_tables_carry_their_other_columns(photos: Path, expected: dict[str, bytes]) -> None:
    for table in write_tables(photos, photos, sorted(photos.rglob("*.jpg"))):
        places = find_places([str(table)])
        assert pixels(places) == expected
        for number, image in enumerate(places.images()):
            inputs = {"site": f"s{number % 3}", "number": number}
            assert {k: type(inputs[k])(v) for k, v in image.inputs.items()} == inputs
        table.unlink()


@pytest.mark.parametrize("null", [False, True])
def test_a_list_names_files_and_addresses(photos: Path, expected: dict[str, bytes], null: bool) -> None:
    files = sorted(photos.rglob("*.jpg"))
    with serve_folder(photos) as address:
        lines = [str(file) for file in files[:10]]
        lines += [f"{address}/{file.relative_to(photos).as_posix()}" for file in files[10:]]
        stream = io.BytesIO(("\0" if null else "\n").join(lines).encode())
        assert pixels(find_places(["-"], NO_FILTER, stream, null=null)) == expected


def test_the_web_gives_images_archives_and_tables(
    photos: Path, packed: Path, expected: dict[str, bytes]
) -> None:
    with serve_folder(packed) as address:
        for kind in ("zip", "tar", "tar.gz", "parquet"):
            assert pixels(find_places([f"{address}/photos.{kind}"])) == expected
        gone = [f"{address}/gone.jpg", f"{address}/gone.tar", "http://127.0.0.1:9/x.jpg"]
        found = {image.name: result for image, result in decoded(find_places(gone))}
        assert list(found) == gone
        assert "404" in str(found[gone[0]])
        assert "404" in str(found[gone[1]])
        assert "cannot be reached" in str(found[gone[2]])
    with serve_folder(photos) as address:
        names = [f"{address}/{name}" for name in expected]
        assert pixels(find_places(names)) == expected


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "s3fs", "boto3"))), reason="moto or s3fs is not installed"
)
def test_an_object_store_gives_folders_archives_and_shards(
    photos: Path, packed: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    warnings.simplefilter("ignore")  # those of botocore and of moto are theirs
    for source in (photos, packed):
        for file in source.rglob("*.*"):
            target = tmp_path / source.name / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(file)
    files = [file for file in tmp_path.rglob("*.*") if file.is_file()]
    with serve_bucket(tmp_path, files) as bucket:
        places = find_places([f"{bucket}/{photos.name}/"])
        assert pixels(places) == expected
        assert [image.name for image in places.images()] == list(expected)
        assert all(image.seen_as().modified for image in places.images())
        for kind in ("zip", "tar", "tar.gz", "parquet"):
            assert pixels(find_places([f"{bucket}/{packed.name}/photos.{kind}"])) == expected
        for shards in ("shard-{0000..0002}.tar", "shard-*.tar"):
            assert pixels(find_places([f"{bucket}/{packed.name}/{shards}"])) == expected
        ((_, result),) = decoded(find_places([f"{bucket}/gone.jpg"]))
        assert result == "it does not exist"


@pytest.mark.skipif(importlib.util.find_spec("fsspec") is None, reason="fsspec is not installed")
def test_a_store_that_breaks_off_costs_no_row_that_was_read(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFile

    content = (packed / "photos.tar").read_bytes()
    for kind in ("tar", "zip", "parquet"):
        fsspec.filesystem("memory").pipe(f"/{kind}/p.{kind}", (packed / f"photos.{kind}").read_bytes())
        assert len(pixels(find_places([f"memory://{kind}/p.{kind}"]))) == COUNT
    read = MemoryFile.read

    def break_off(self: MemoryFile, size: int = -1) -> bytes:
        if self.tell() > len(content) // 2:
            raise RuntimeError("the store is gone")
        return bytes(read(self, min(size, 4096)))

    monkeypatch.setattr(MemoryFile, "read", break_off)
    monkeypatch.setattr("refiner_cli.inference.sources.bucket.BUCKET_BLOCK", 4096)
    monkeypatch.setattr("refiner_cli.inference.sources.tar.STREAM_BLOCK", 512)
    found = {image.name: result for image, result in decoded(find_places(["memory://tar/p.tar"]))}
    assert list(found)[-1] == "memory://tar/p.tar"
    assert "the store is gone" in str(found["memory://tar/p.tar"])
    assert len(found) > 2
    assert not any(isinstance(result, str) for result in list(found.values())[:-1])


def test_a_connection_that_breaks_costs_no_row_that_was_read(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refiner_cli.inference.sources.tar.STREAM_BLOCK", 512)
    monkeypatch.setattr("refiner_cli.inference.sources.web.WEB_BLOCK", 4096)
    content = (packed / "photos.tar").read_bytes()

    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with serve_handler(Half) as address:
        place = f"{address}/p.tar"
        found = {image.name: result for image, result in decoded(find_places([place]))}
    assert isinstance(found.pop(place), str)
    assert len(found) > 2
    assert not any(isinstance(result, str) for result in found.values())


def test_a_server_that_keeps_its_reader_waiting_costs_one_row(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (photos / "a" / "0000.jpg").read_bytes()
    going = threading.Event()

    class Dripping(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if self.path == "/good.jpg" else 1 << 20))
            self.end_headers()
            if self.path == "/good.jpg":
                self.wfile.write(content)
                return
            with contextlib.suppress(OSError):
                while not going.wait(0.02):
                    self.wfile.write(b"x")

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    monkeypatch.setattr(web, "SLOWEST", Pace(1 << 10, 0.2))
    monkeypatch.setattr(web, "PAUSE_SECONDS", 0.0)
    with serve_handler(Dripping) as address:
        names = [f"{address}/slow.jpg", f"{address}/good.jpg"]
        found = {image.name: result for image, result in decoded(find_places(names))}
        going.set()
    assert "the server sent" in str(found[names[0]])
    assert not isinstance(found[names[1]], str)


def test_several_places_keep_their_names_apart(packed: Path, photos: Path) -> None:
    places = find_places([str(photos), f"{packed}/photos.zip", f"{packed}/photos.tar"])
    names = [image.name for image in places.images()]
    assert len(set(names)) == len(names) == 3 * COUNT
    assert names[0].startswith(f"{photos}/")
    assert names[-1].startswith(f"{packed}/photos.tar/")


def test_images_are_found_again_by_the_names_of_their_rows(packed: Path, expected: dict[str, bytes]) -> None:
    names = [*reversed(expected), "gone.jpg"]
    for kind, works in (("tar", True), ("zip", True), ("tar.gz", False)):
        images = list(find_places([f"{packed}/photos.{kind}"]).locate(names))
        assert [image.name for image in images] == names
        ((_, results),) = decode_batches(images, len(images), CROP, 0)
        assert results[-1] == "its source does not have it any more"
        for name, result in zip(names[:-1], results, strict=False):
            assert (
                result == "it can only be read together with its archive"
                if not works
                else (np.asarray(result).tobytes() == expected[name])
            )


@pytest.mark.parametrize(
    ("given", "lost"),
    [
        (["photos"], 0),
        (["photos", "gone"], 1),
        (["one.jpg", "gone"], 1),
        (["gone", "photos.{tar,zip}"], 1),
        (["one.jpg", "https://nowhere.invalid/a.jpg"], 0),
    ],
)
def test_an_index_finds_its_images_wherever_a_command_is_started(
    packed: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], lost: int
) -> None:
    """Names of several places begin with what was given, also where one of them has vanished since."""
    for name, target in (("photos", photos), ("photos.tar", packed / "photos.tar"),
                         ("photos.zip", packed / "photos.zip"), ("one.jpg", next(photos.rglob("*.jpg"))),
                         ("gone/x.jpg", next(photos.rglob("*.jpg")))):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    places = find_places(given)
    names, noted = [image.name for image in places.images()], name_places(given, places)
    monkeypatch.chdir(packed)
    (tmp_path / "gone" / "x.jpg").unlink()
    (tmp_path / "gone").rmdir()
    found = list(find_again(noted).locate(names))
    assert [image.name for image in found] == names
    contents = [image.content or image.file for image in found]
    missing = [isinstance(one, Failed) or (isinstance(one, Path) and not one.exists()) for one in contents]
    assert sum(missing) == lost
    assert contents[-1] == WebContent(given[-1]) or not given[-1].startswith("https")


def test_a_fetch_that_needs_too_much_memory_costs_its_image() -> None:
    class Huge:
        remote = True

        def read(self) -> bytes:
            raise MemoryError

    images = [ImageFile(Path("x"), "x", Huge())]
    ((_, results),) = decode_batches(images, 1, CROP, 0)
    assert results == ["there is not enough memory"]


def test_patterns_choose_members(packed: Path) -> None:
    chosen = PathFilter(include=["*.jpg"], exclude=["b"])
    for kind in ("zip", "tar"):
        names = [image.name for image in find_places([f"{packed}/photos.{kind}"], chosen).images()]
        assert len(names) == COUNT // 2
        assert all(name.startswith("a/") for name in names)


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{x,y}/{1..2}") == ["x/1", "x/2", "y/1", "y/2"]
    assert expand_braces("a{b}c{}") == ["a{b}c{}"]
    for wrong in ("{5..2}", "{0..99999999999}"):
        with pytest.raises(UsageError):
            expand_braces(wrong)


def test_a_place_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for place, error, says in (
        (tmp_path / "nowhere", InputError, "There is no file or folder .*nowhere"),
        (tmp_path / "x-{0..1}.tar", InputError, "There is no file or folder .*x-0.tar"),
        ("quux://x/y.jpg", UsageError, "quux"),
    ):
        with pytest.raises(error, match=says):
            list(find_places([str(place)]).images())


def photo(number: int, photos: Path) -> bytes:
    return sorted(photos.rglob("*.jpg"))[number].read_bytes()


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def results_of(file: Path) -> dict[str, str]:
    """ "ok" or the reason of every image."""
    found = list(decoded(find_places([str(file)])))
    names = {image.name: "ok" if not isinstance(result, str) else result for image, result in found}
    assert len(names) == len(found)
    return names


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_hostile_tar_costs_rows_and_writes_nothing(photos: Path, tmp_path: Path, suffix: str) -> None:
    file, data = tmp_path / f"x.{suffix}", photo(0, photos)
    with tarfile.open(file, "w:gz" if suffix.endswith("gz") else "w") as tar:
        add(tar, "../../out.jpg", data)
        add(tar, "/abs.jpg", data)
        add(tar, "soft.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg")
        add(tar, "pipe.jpg", b"", type=tarfile.FIFOTYPE)
        add(tar, "text.jpg", b"no image")
        add(tar, "empty.jpg", b"")
        add(tar, "a.jpg", data)
        add(tar, "a.jpg", data)
        add(tar, "caf\udce9.jpg", data)
        add(tar, "__MACOSX/._a.jpg", data)
        add(tar, "notes.txt", b"x")
    before = set(tmp_path.rglob("*"))
    found = results_of(file)
    assert {name for name, result in found.items() if result == "ok"} == {"a.jpg", "a.jpg#2", "caf\\xe9.jpg"}
    assert "leaves its folder" in found["../../out.jpg"]
    assert "absolute" in found["abs.jpg"]
    assert "links" in found["soft.jpg"]
    assert "links" in found["hard.jpg"]
    assert "regular" in found["pipe.jpg"]
    assert "format" in found["text.jpg"]
    assert "empty" in found["empty.jpg"]
    assert len(found) == 10
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["sparse", "negative"])
def test_a_member_that_lies_about_its_size_ends_a_tar(photos: Path, tmp_path: Path, kind: str) -> None:
    file, data = tmp_path / "x.tar", photo(0, photos)
    with file.open("wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        add(tar, "a.jpg", data)
        if kind == "sparse":
            add(tar, "b.jpg", data, pax_headers={"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"})
        else:
            info = tarfile.TarInfo("b.jpg")
            info.size = -1
            stream.write(info.tobuf(tarfile.GNU_FORMAT))
            stream.write(data + bytes(-len(data) % tarfile.BLOCKSIZE))
        add(tar, "c.jpg", data)
    found = results_of(file)
    assert found.pop("a.jpg") == "ok"
    assert found == {str(file): "'b.jpg' is a sparse file"}


def test_a_hostile_zip_costs_rows_and_writes_nothing(photos: Path, tmp_path: Path) -> None:
    file, data = tmp_path / "x.zip", photo(0, photos)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # of the duplicate name
        archive.writestr("../out.jpg", data)
        archive.writestr("a.jpg", data)
        archive.writestr("a.jpg", data)
        archive.writestr("text.jpg", "no image")
        archive.writestr("bzip.jpg", data, zipfile.ZIP_BZIP2)
        archive.writestr("bomb.jpg", bytes(200 << 20), zipfile.ZIP_DEFLATED)
        archive.writestr("wrong.jpg", data + b"123456789", zipfile.ZIP_STORED)
        archive.writestr("secret.jpg", data)
        archive.writestr("CAFE.jpg", data)
        archive.writestr("\u00fcber.jpg", data)
    content = bytearray(file.read_bytes())
    place = content.index(b"123456789")
    content[place] ^= 1  # a wrong checksum
    entry = content.rindex(b"secret.jpg") - 46
    content[entry + 8] |= 1  # encrypted, says the directory
    content = bytearray(bytes(content).replace(b"CAFE.jpg", b"CAF\x82.jpg"))  # cp437
    file.write_bytes(content)
    found = results_of(file)
    assert {name for name, result in found.items() if result == "ok"} == {
        "a.jpg", "a.jpg#2", "CAF\u00e9.jpg", "\u00fcber.jpg",
    }  # fmt: skip
    assert "leaves its folder" in found["../out.jpg"]
    assert "deflate" in found["bzip.jpg"]
    assert "too large" in found["bomb.jpg"]
    assert "checksum" in found["wrong.jpg"]
    assert "encrypted" in found["secret.jpg"]
    assert [one.name for one in tmp_path.iterdir()] == ["x.zip"]


def test_a_zip_that_lies_about_a_size_is_inflated_no_further(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(50 << 20))
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"a.jpg") - 46
    content[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    file.write_bytes(content)
    assert results_of(file) == {"a.jpg": "it has another size than its archive says"}


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.zst", "tar.xz", "zip", "parquet"])
def test_a_damaged_archive_is_one_more_row(packed: Path, tmp_path: Path, kind: str) -> None:
    content = (packed / f"photos.{kind}").read_bytes()
    file = tmp_path / f"x.{kind}"
    name = str(file)
    for harm in (content[: len(content) * 2 // 3], b"<html>404</html>", b""):
        file.write_bytes(harm)
        places = find_places([name])
        found = {image.name: result for image, result in decoded(places)}
        assert isinstance(found[name], str), harm[:9]
        assert places.gone() is None
        assert len(found) <= COUNT + 1
    if kind == "tar":
        broken = bytearray(content)
        broken[content.index(b"a/0010.jpg") : content.index(b"a/0010.jpg") + 512] = b"x" * 512
        file.write_bytes(broken)
        found = results_of(file)
        assert list(found)[-1] == name  # the rest is not lost in silence
        assert list(found)[:5] == [f"a/{number:04d}.jpg" for number in range(0, 10, 2)]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_bomb_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("refiner_cli.inference.sources.unpacked.EXPANSION_ALLOWANCE", 1 << 20)
    plain, file = tmp_path / "plain.tar", tmp_path / f"bomb.tar.{suffix}"
    with tarfile.open(plain, "w") as tar:
        for number in range(3):
            add(tar, f"{number}.txt", bytes(3 << 20))
    if suffix == "zst":
        write_zst(file, plain)
    else:
        with tarfile.open(file, f"w:{suffix}") as tar:
            tar.add(plain, "inner.bin")
    found = results_of(file)
    assert "more than 200 times" in found[str(file)]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.csv", "a,b\n1,2\n", "no column of paths"),
        ("x.csv", "path\n\xff\n", "does not exist"),
        ("x.jsonl", '{"path": "a.jpg"}\n{"path": ', "is not JSON"),
        ("x.jsonl", "[3]\n", "not an object"),
        ("x.parquet", "PAR1", "arquet"),
    ],
)
def test_a_damaged_table_is_one_more_row(tmp_path: Path, name: str, text: str, says: str) -> None:
    file = tmp_path / name
    file.write_text(text, "utf-8")
    assert says in list(results_of(file).values())[-1]


def test_bytes_ahead_of_the_model_are_bounded(monkeypatch: pytest.MonkeyPatch, packed: Path) -> None:
    monkeypatch.setattr("refiner_cli.inference.decoding.BYTES_AHEAD", 1)
    places = find_places([f"{packed}/photos.tar.gz"])
    stream = decode_batches(places.images(), 2, CROP, 1)
    group, results = next(stream)
    assert len(results) == 2
    assert all(queued.held == 0 for queued in group.wanted)
    assert np.shape(results[0]) == (8, 8, 3)
    stream.close()  # type: ignore[attr-defined]
