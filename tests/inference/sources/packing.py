"""The same photos as every kind of source."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import json
import logging
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHARDS = 3


def draw_noise(folder: Path, count: int, side: int = 24) -> list[Path]:
    """Small photos, no two alike, in two folders."""
    files = []
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = Image.effect_noise((side + number % 5, side), 20 + number % 90).convert("RGB")
        noise.paste((number * 37 % 256, number * 11 % 256, number % 256), (0, 0, side // 2, side // 2))
        noise.save(file, quality=90)
        files.append(file)
    return sorted(files)


def write_tar(file: Path, folder: Path, photos: Sequence[Path], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as tar:
        for photo in photos:
            tar.add(photo, photo.relative_to(folder).as_posix())
    return file


def write_zst(file: Path, tar: Path) -> Path:
    with pa.CompressedOutputStream(str(file), "zstd") as stream:
        stream.write(tar.read_bytes())
    return file


def write_zip(file: Path, folder: Path, photos: Sequence[Path]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for number, photo in enumerate(photos):
            archive.write(photo, photo.relative_to(folder).as_posix(), [0, 8][number % 2])
    return file


def write_shards(pattern: str, folder: Path, photos: Sequence[Path]) -> None:
    """WebDataset shards ``pattern % number``: every photo with a label beside it."""
    for number in range(SHARDS):
        with tarfile.open(pattern % number, "w") as tar:
            for photo in photos[number::SHARDS]:
                name = photo.relative_to(folder).as_posix()
                tar.add(photo, name)
                label = json.dumps({"label": number}).encode()
                info = tarfile.TarInfo(name.replace(".jpg", ".json"))
                info.size = len(label)
                tar.addfile(info, io.BytesIO(label))


def write_tables(place: Path, folder: Path, photos: Sequence[Path]) -> list[Path]:
    """CSV, JSON lines and Parquet with a path and two other columns, in the photos' own folder."""
    rows = [
        {"path": photo.relative_to(folder).as_posix(), "site": f"s{i % 3}", "number": i}
        for i, photo in enumerate(photos)
    ]
    lines = ["path,site,number", *(f"{row['path']},{row['site']},{row['number']}" for row in rows)]
    (place / "list.csv").write_text("\n".join(lines))
    (place / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), place / "list.parquet")
    return [place / f"list.{suffix}" for suffix in ("csv", "jsonl", "parquet")]


def write_image_table(file: Path, folder: Path, photos: Sequence[Path]) -> Path:
    """A Parquet file as ``datasets`` writes it."""
    rows = [
        {"image": {"bytes": photo.read_bytes(), "path": photo.relative_to(folder).as_posix()}, "label": i}
        for i, photo in enumerate(photos)
    ]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    return file


@contextlib.contextmanager
def serve_handler(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a web server on loopback whose requests ``handler`` answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """The address of a web server on loopback that holds a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    with serve_handler(functools.partial(Quiet, directory=str(folder))) as address:
        yield address


@contextlib.contextmanager
def serve_bucket(folder: Path, files: Sequence[Path]) -> Iterator[str]:
    """The address of a bucket in an S3 server on loopback that holds some files of a folder."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip

    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        store = boto3.client("s3")
        store.create_bucket(Bucket="photos")
        for file in files:
            store.put_object(Bucket="photos", Key=file.relative_to(folder).as_posix(), Body=file.read_bytes())
        yield "s3://photos"
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        server.stop()
