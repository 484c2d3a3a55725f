"""Opening image files: one list of formats everywhere, and limits on what one file may cost."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from PIL import Image

import refiner_cli
from refiner_cli.data import image_file
from refiner_cli.data.crop import Crop
from refiner_cli.data.decode import read
from refiner_cli.data.image_file import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    SUFFIXES_BY_FORMAT,
    DecodeLimits,
    UnreadableError,
    count_scans,
    webp_size,
)
from refiner_cli.data.images import decode
from refiner_cli.data.integrity import find_unreadable
from refiner_cli.data.progress import silent
from refiner_cli.errors import ConfigError, DatasetError

PACKAGE = Path(refiner_cli.__file__).parent
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def through_read(file: Path) -> str:
    with pytest.raises(UnreadableError) as caught:
        read(file)
    return str(caught.value)


def through_prediction(file: Path) -> str:
    with pytest.raises(UnreadableError) as caught:
        Crop(8, 8).load(file)
    return str(caught.value)


def through_training(file: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        decode(file)
    return str(caught.value).partition(" (")[2].removesuffix(").")


def through_verification(file: Path) -> str:
    (fault,) = find_unreadable(file.parent, [file.name], name="x", workers=1, report=silent, stop=Event())
    return fault.reason


WAYS: list[Callable[[Path], str]] = [through_read, through_prediction, through_training, through_verification]


def other_formats() -> list[tuple[str, bytes]]:
    """Small files in formats that Pillow knows and we do not read."""
    found = [("EPS", EPS)]
    for name in ("PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000"):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(buffer, name)
        found.append((name, buffer.getvalue()))
    return found


@pytest.mark.parametrize(("name", "content"), other_formats(), ids=lambda value: str(value)[:8])
def test_other_formats_are_refused_everywhere_in_the_same_words_and_start_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        pytest.fail(f"{name} starts a program: {arguments}")

    for module, function in (("subprocess", "Popen"), ("os", "system"), ("os", "posix_spawn")):
        monkeypatch.setattr(f"{module}.{function}", refuse)
    (tmp_path / "a.jpg").write_bytes(content)
    reasons = {way(tmp_path / "a.jpg") for way in WAYS}
    assert reasons == {"it is not an image in a supported format"}


def test_every_call_of_pillows_open_in_the_package_gives_the_formats() -> None:
    calls = [
        (file.name, node)
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open")
    ]
    assert calls
    for file, call in calls:
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert given.get("formats") == "IMAGE_FORMATS", file


def test_one_list_of_suffixes() -> None:
    lists = [
        file.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.List | ast.Tuple | ast.Set)
        and {".jpg", ".png"} <= {getattr(item, "value", None) for item in node.elts}
    ]
    assert lists == []
    assert {".jfif", ".jpe", ".mpo", ".heic", ".avif"} <= IMAGE_SUFFIXES


@pytest.mark.parametrize("kind", [name for name in SUFFIXES_BY_FORMAT if name in IMAGE_FORMATS])
def test_every_format_is_read_under_every_suffix_of_it(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, {"MPO": "JPEG"}.get(kind, kind))
    for suffix in SUFFIXES_BY_FORMAT[kind]:
        (tmp_path / f"a{suffix}").write_bytes(buffer.getvalue())
        assert read(tmp_path / f"a{suffix}").size == (32, 32)


def test_heic_without_its_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_file, "IMAGE_FORMATS", [name for name in IMAGE_FORMATS if name != "HEIF"])
    (tmp_path / "a.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(40))
    assert "pip install pillow-heif" in through_read(tmp_path / "a.heic")


# --- limits --------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour: int, row_bytes: int) -> bytes:
    """A PNG of zeros: a few kilobytes that stand for many pixels."""
    chunks = [
        (b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])),
        (b"IDAT", zlib.compress(bytes(height * (1 + row_bytes)), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )


def with_scans(count: int) -> bytes:
    """A progressive JPEG whose first scan is repeated."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    first, second = (content.index(b"\xff\xda", start) for start in (0, content.index(b"\xff\xda") + 2))
    scan = content[first:second]
    scan = scan[: scan.rindex(b"\xff\xc4")]  # without the tables of the next one
    return content[:first] + scan * count + content[first:]


def test_the_pixels_are_limited_before_they_are_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", limits=DecodeLimits(megapixels=0.02)).size == (200, 100)
    with pytest.raises(UnreadableError, match=r"more than 0.0199 million pixels \(200 x 100\)"):
        read(tmp_path / "a.png", limits=DecodeLimits(megapixels=0.0199))


def test_a_photo_of_200_megapixels_is_within_the_limits(tmp_path: Path) -> None:
    """Pillow's own limit is below what a phone's camera takes."""
    (tmp_path / "a.png").write_bytes(png(16320, 12240, 1, 0, 2040))
    assert read(tmp_path / "a.png", 100).size == (268, 201)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux counts it")
@pytest.mark.parametrize("kind", ["deep", "transparent", "palette"])
def test_converting_takes_no_more_than_one_more_image(tmp_path: Path, kind: str) -> None:
    file, side = tmp_path / "a.png", 5000
    if kind == "deep":
        file.write_bytes(png(side, side, 16, 0, 2 * side))
    elif kind == "transparent":
        file.write_bytes(png(side, side, 8, 6, 4 * side))
    else:
        file = tmp_path / "a.gif"
        Image.new("P", (side, side)).save(file, transparency=0)
    script = (
        "import resource, sys; from pathlib import Path; from refiner_cli.data.decode import read\n"
        "import numpy\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); read(Path(sys.argv[1])); print((peak() - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2 * 4 * side * side / 2**20 + 150  # MiB: two images of 4 bytes, and strips


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "I", "F", "P", "LA", "CMYK"])
@pytest.mark.parametrize("factor", [1, 3])
def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch, mode: str, factor: int) -> None:
    from refiner_cli.data import decode as module

    noise = Image.effect_noise((45, 70), 90)
    image = noise.convert("I").convert("I;16") if mode == "I;16" else noise.convert("RGB").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    complete = module.to_rgb(image, factor)
    monkeypatch.setattr(module, "STRIP_PIXELS", 45 * 7)
    assert module.to_rgb(image, factor).tobytes() == complete.tobytes()


def test_scans_are_counted_and_limited(tmp_path: Path) -> None:
    few, many = with_scans(0), with_scans(90)
    assert count_scans(io.BytesIO(many)) == count_scans(io.BytesIO(few)) + 90
    trailing = few + b"\xff\xda" * 500  # a film behind the photo, as phones write it
    assert count_scans(io.BytesIO(trailing)) == count_scans(io.BytesIO(few))
    (tmp_path / "few.jpg").write_bytes(trailing)
    (tmp_path / "many.jpg").write_bytes(many)
    assert read(tmp_path / "few.jpg").size == (64, 64)
    assert {way(tmp_path / "many.jpg") for way in WAYS} == {
        "it is a progressive JPEG of 100 scans, more than 64"
    }


def test_a_decoder_is_ended_when_its_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((600, 600), 90).convert("RGB").save(tmp_path / "a.jpg")
    clock = iter(range(1000))
    monkeypatch.setattr(image_file.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(UnreadableError, match="takes more than 2 seconds"):
        read(tmp_path / "a.jpg", limits=DecodeLimits(seconds=2))
    assert read(tmp_path / "a.jpg", limits=DecodeLimits(seconds=0)).size == (600, 600)


@pytest.mark.parametrize(
    ("kind", "options"), [("VP8 ", {}), ("VP8L", {"lossless": True}), ("VP8X", {"exif": b"Exif"})]
)
def test_the_size_of_a_webp_is_in_its_header(kind: str, options: dict[str, object]) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((301, 77), 90).convert("RGB").save(buffer, "WEBP", **options)
    assert buffer.getvalue()[12:16] == kind.encode()
    assert webp_size(buffer.getvalue()[:32]) == (301, 77)


def test_a_webp_of_few_bytes_and_many_pixels_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "WEBP", lossless=True)
    content = bytearray(buffer.getvalue())
    content[21:25] = (16382 | 14999 << 14).to_bytes(4, "little")
    (tmp_path / "a.webp").write_bytes(content)
    assert "cannot be a photo of 16383 x 15000 pixels" in through_read(tmp_path / "a.webp")


def test_a_file_too_large_for_an_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.avif").open("wb") as stream:
        stream.truncate(3_000_000_000)
    assert "3.0 GB is too large" in through_read(tmp_path / "a.avif")


def test_limits_come_from_the_environment() -> None:
    given = {"REFINER_MAX_MEGAPIXELS": "40", "REFINER_DECODE_SECONDS": " 0 "}
    assert DecodeLimits.from_environment(given) == DecodeLimits(megapixels=40, seconds=0)
    assert DecodeLimits.from_environment({"REFINER_MAX_MEGAPIXELS": ""}) == DecodeLimits()
    for text in ("many", "-1", "0", "nan", "inf"):
        with pytest.raises(ConfigError, match="REFINER_MAX_MEGAPIXELS is"):
            DecodeLimits.from_environment({"REFINER_MAX_MEGAPIXELS": text})
