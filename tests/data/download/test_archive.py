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

from refiner_cli.data.download import archive as base
from refiner_cli.data.download.archive import ArchiveError
from refiner_cli.data.download.content import open_archive, sniff_content
from refiner_cli.data.progress import StoppedError
from refiner_cli.errors import FetchError
from tests.data.conftest import Log
from tests.data.limits import memory_limit

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


def zip_link_bomb(path: Path) -> Path:
    """A link whose target unpacks to 200 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        link.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(link, b"a" * (200 << 20))
    return path


def zip_of_links(path: Path) -> Path:
    """A directory of the zip that claims 3 GB."""
    raw = bytearray(pack_zip(path, FILES).read_bytes())
    struct.pack_into("<L", raw, raw.rindex(b"PK\x05\x06") + 12, 3 << 30)
    with path.open("wb") as stream:
        stream.truncate(3 << 30)  # sparse, so that the claim is not beyond the file
        stream.seek((3 << 30) - len(raw))
        stream.write(raw)
    return path


def gnu_sparse(path: Path) -> Path:
    """A member that claims 5 TB and has none of it: GNU's old format."""
    info = tarfile.TarInfo("hole")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = tarfile.itn(5 << 40, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(1024))
    return path


def pax_member(path: Path, **records: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("hole")
        info.pax_headers = records
        info.size = 3
        archive.addfile(info, io.BytesIO(b"0\n\n"))
    return path


def pax_sparse(path: Path) -> Path:
    return pax_member(path, **{"GNU.sparse.map": "0,0", "GNU.sparse.size": str(5 << 40)})


def pax_sparse_1_0(path: Path) -> Path:
    major = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    return pax_member(path, **major, **{"GNU.sparse.realsize": str(5 << 40), "GNU.sparse.name": "x"})


def pax_size(path: Path) -> Path:
    return pax_member(path, size=str(5 << 40))


def pax_header_of_300_mb(path: Path) -> Path:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 300 << 20
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(header.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(300):
            stream.write(bytes(1 << 20))
    return path


def tar_of_headers(path: Path) -> Path:
    """2,000 members of one name, without content."""
    block = tarfile.TarInfo("a" * 90).tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(gzip.compress(block * 2000, 1))
    return path


@pytest.mark.parametrize(
    "make",
    [gnu_sparse, pax_sparse, pax_sparse_1_0, pax_size, pax_header_of_300_mb, zip_of_links, tar_of_headers],
)
def test_an_archive_that_asks_for_much_is_refused_before_it_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log, stop: Event, make: Callable[[Path], Path]
) -> None:
    monkeypatch.setattr(base, "MAX_MEMBERS", 10)
    path = make(tmp_path / "x")
    with memory_limit(150 << 20), pytest.raises(ArchiveError):
        unpack_all(path, tmp_path / "out", log, stop)
    assert contents(tmp_path / "out") == {}


def test_a_link_of_200_mb_is_read_up_to_its_first_bytes(tmp_path: Path, log: Log, stop: Event) -> None:
    path = zip_link_bomb(tmp_path / "x")
    with memory_limit(100 << 20):
        unpack_all(path, tmp_path / "out", log, stop)
    assert contents(tmp_path / "out") == {}


def test_many_members_of_one_name_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_MEMBERS", 10)
    for pack in (pack_zip, pack_tar):
        with pytest.raises(ArchiveError, match="more than 10 members"):
            open_archive(pack(tmp_path / "x", {f"{number}": b"" for number in range(11)}))


@both
def test_a_member_too_large_for_the_memory_is_not_read_into_it(
    pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_IN_MEMORY", 1000)
    with open_archive(pack(tmp_path / "x", FILES)) as archive:
        assert archive.read("top/a.txt") == b"alpha"
        with pytest.raises(ArchiveError, match=r"more than the 1\.0 kB that are read into memory"):
            archive.read("top/deep/b.jpg")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_without_a_bound_are_not_unpacked(
    tmp_path: Path, log: Log, stop: Event, method: int
) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w", method) as archive:
        archive.writestr("zeros", bytes(50 << 20))
    with memory_limit(30 << 20), pytest.raises(ArchiveError, match="not compressed by deflate"):
        unpack_all(tmp_path / "x", tmp_path / "out", log, stop)


@both
def test_checking_finds_damage_in_members_that_nobody_wants(
    pack: Pack, tmp_path: Path, log: Log, stop: Event
) -> None:
    path = pack(tmp_path / "x", FILES)
    with open_archive(path) as archive:
        archive.check(log, stop)
    raw = bytearray(path.read_bytes())
    if pack is pack_zip:
        raw[raw.rindex(b"PK\x01\x02") + 16] ^= 1  # the checksum of the last member
    else:
        raw[-8] ^= 1  # gzip's
    path.write_bytes(raw)
    with pytest.raises(ArchiveError, match="damaged"), open_archive(path) as archive:
        archive.check(log, stop)


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
    with pytest.raises(ArchiveError, match="is a web page \\('Quota exceeded'\\)"):
        open_archive(tmp_path / "x.zip")
