from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refiner_cli.data.download.archive import ArchiveError
from refiner_cli.data.download.content import open_archive, sniff_content
from refiner_cli.data.progress import StoppedError
from refiner_cli.errors import FetchError
from tests.data.conftest import Log

FILES = {"top/a.txt": b"alpha", "top/deep/b.jpg": bytes(range(256)) * 50}
Pack = Callable[[Path, dict[str, bytes]], Path]


def pack_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pack_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


both = pytest.mark.parametrize("pack", [pack_zip, pack_tar])


def unpack_all(path: Path, folder: Path, log: Log, stop: Event) -> None:
    with open_archive(path) as archive:
        wanted = {folder / name: name for name in archive.members}
        for target in wanted:
            target.parent.mkdir(parents=True, exist_ok=True)
        archive.unpack(wanted, log, stop)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@both
def test_lists_reads_and_unpacks(pack: Pack, tmp_path: Path, log: Log, stop: Event) -> None:
    path = pack(tmp_path / "x", FILES)
    with open_archive(path) as archive:
        assert archive.members == {name: len(content) for name, content in FILES.items()}
        assert archive.read("top/a.txt") == b"alpha"
    unpack_all(path, tmp_path / "out", log, stop)
    assert contents(tmp_path / "out") == FILES
    assert (
        log.progress("unpack")[-1].done == log.progress("unpack")[-1].total == sum(map(len, FILES.values()))
    )


@both
def test_one_member_may_have_two_targets(pack: Pack, tmp_path: Path, log: Log, stop: Event) -> None:
    with open_archive(pack(tmp_path / "x", FILES)) as archive:
        archive.unpack({tmp_path / "1": "top/a.txt", tmp_path / "2": "top/a.txt"}, log, stop)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == b"alpha"


@both
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "..\\evil", "C:\\evil"])  # noqa: S108
def test_a_name_that_leaves_the_folder_refuses_the_archive(
    pack: Pack, tmp_path: Path, log: Log, stop: Event, name: str
) -> None:
    path = pack(tmp_path / "x", {**FILES, name: b"evil"})
    with pytest.raises(ArchiveError, match="refused: its member") as caught:
        unpack_all(path, tmp_path / "out", log, stop)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == [path]


def zip_link(path: Path, target: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("images/link")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, target)
        archive.writestr("images/link/evil", "evil")
    return path


def tar_link(path: Path, target: str, kind: bytes = tarfile.SYMTYPE) -> Path:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("images/link")
        link.type, link.linkname = kind, target
        archive.addfile(link)
        info = tarfile.TarInfo("images/link/evil")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    return path


@pytest.mark.parametrize("make", [zip_link, tar_link])
@pytest.mark.parametrize("target", ["/etc", "../../out", "..\\..\\out", "C:\\Windows"])
def test_a_link_out_of_the_archive_refuses_it(
    make: Callable[[Path, str], Path], tmp_path: Path, target: str
) -> None:
    with pytest.raises(ArchiveError, match="refused: its link"):
        open_archive(make(tmp_path / "x", target))


def test_a_hard_link_out_of_the_archive_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="refused: its link"):
        open_archive(tar_link(tmp_path / "x", "../evil", tarfile.LNKTYPE))


@pytest.mark.parametrize("make", [zip_link, tar_link])
def test_a_link_inside_the_archive_is_not_made(
    make: Callable[[Path, str], Path], tmp_path: Path, log: Log, stop: Event
) -> None:
    path = make(tmp_path / "x", "other")
    unpack_all(path, tmp_path / "out", log, stop)
    assert contents(tmp_path / "out") == {"images/link/evil": b"evil"}
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))


def test_a_device_refuses_the_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as archive:
        info = tarfile.TarInfo("dev")
        info.type = tarfile.CHRTYPE
        archive.addfile(info)
    with pytest.raises(ArchiveError, match="device"):
        open_archive(tmp_path / "x")


@both
def test_a_bomb_is_refused_before_it_goes_off(pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="would expand to more than"):
        open_archive(pack(tmp_path / "x", {"zeros": bytes(100 << 20)}))


def test_a_bomb_in_a_tar_header_is_refused(tmp_path: Path) -> None:
    """A header that claims a long name of many zeros would otherwise be read into memory."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(tmp_path / "x", "wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            stream.write(bytes(1 << 20))
    with pytest.raises(ArchiveError):
        open_archive(tmp_path / "x")


def test_a_zip_that_lies_about_its_sizes_does_not_write_more_than_it_says(
    tmp_path: Path, log: Log, stop: Event
) -> None:
    path = pack_zip(tmp_path / "x", {"a": bytes(1 << 20)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<L", 1 << 20), struct.pack("<L", 10)))
    with pytest.raises(ArchiveError, match="damaged"):
        unpack_all(path, tmp_path / "out", log, stop)
    assert (tmp_path / "out/a").stat().st_size <= 10


@both
def test_a_torn_archive_is_damaged_whatever_is_missing(
    pack: Pack, tmp_path: Path, log: Log, stop: Event
) -> None:
    whole = pack(tmp_path / "x", FILES).read_bytes()
    for length in range(4, len(whole) - 1, max(1, len(whole) // 40)):
        torn = tmp_path / "torn"
        torn.write_bytes(whole[:length])
        with pytest.raises(ArchiveError):
            unpack_all(torn, tmp_path / "out", log, stop)


def test_a_torn_zip_is_not_taken_for_the_zip_that_it_holds(tmp_path: Path) -> None:
    inner = pack_zip(tmp_path / "inner", {"data.pkl": b"rows"}).read_bytes()
    outer = tmp_path / "outer"
    with zipfile.ZipFile(outer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("metadata.t7", inner)
    outer.write_bytes(outer.read_bytes()[: len(inner) + 50])
    with pytest.raises(ArchiveError, match="its end is missing"):
        open_archive(outer)


def test_a_flipped_byte_is_found_by_its_checksum(tmp_path: Path, log: Log, stop: Event) -> None:
    path = tmp_path / "x"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a", b"alpha" * 100)
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ArchiveError, match="damaged"):
        unpack_all(path, tmp_path / "out", log, stop)


@both
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_no_broken_archive_raises_anything_else(pack: Pack, tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(pack(tmp_path / "x", FILES).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(raw)
    folder = tmp_path / "out"
    with suppress(FetchError):
        unpack_all(tmp_path / "x", folder, Log(), Event())
    assert {file.name for file in tmp_path.iterdir()} <= {"x", "out"}


def test_an_encrypted_member_is_named(tmp_path: Path) -> None:
    path = pack_zip(tmp_path / "x", {"a": b"alpha"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    with open_archive(path) as archive, pytest.raises(ArchiveError, match="encrypted"):
        archive.read("a")


def test_what_is_there_already_is_not_written_again(tmp_path: Path, log: Log, stop: Event) -> None:
    path = pack_zip(tmp_path / "x", FILES)
    unpack_all(path, tmp_path / "out", log, stop)
    whole, torn = tmp_path / "out/top/a.txt", tmp_path / "out/top/deep/b.jpg"
    before = whole.stat().st_ino
    torn.write_bytes(bytes(len(FILES["top/deep/b.jpg"])))  # the right size, another content
    unpack_all(path, tmp_path / "out", log, stop)
    assert contents(tmp_path / "out") == FILES
    assert whole.stat().st_ino == before


def test_a_target_that_is_a_link_is_replaced_and_not_followed(tmp_path: Path, log: Log, stop: Event) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (tmp_path / "out/top").mkdir(parents=True)
    (tmp_path / "out/top/a.txt").symlink_to(outside)
    unpack_all(pack_zip(tmp_path / "x", FILES), tmp_path / "out", log, stop)
    assert outside.read_bytes() == b"mine"
    assert contents(tmp_path / "out") == FILES


@both
def test_unpacking_stops_when_asked(pack: Pack, tmp_path: Path, log: Log, stop: Event) -> None:
    stop.set()
    with pytest.raises(StoppedError):
        unpack_all(pack(tmp_path / "x", FILES), tmp_path / "out", log, stop)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PK\x03\x04...", None),
        (b"\x1f\x8b...", None),
        (bytes(257) + b"ustar", None),
        (b"", "an empty file"),
        (b"\xef\xbb\xbf \n<html><title>404 Not\tFound</title>", "a web page ('404 Not Found')"),
        (b"<!DOCTYPE HTML>...", "a web page"),
        (b"<Error><Code>AccessDenied</Code></Error>", "an error message ('AccessDenied')"),
        (b"\xff\xd8\xff", "neither a zip nor a tar archive"),
    ],
)
def test_what_is_not_an_archive_is_named(head: bytes, kind: str | None) -> None:
    assert sniff_content(head) == kind


def test_a_saved_web_page_is_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"<html><title>Quota exceeded</title>")
    with pytest.raises(ArchiveError, match="is not an archive but a web page \\('Quota exceeded'\\)"):
        open_archive(tmp_path / "x.zip")
