"""Small archives in the exact layouts of the published ones, with the real pair lists where they are here."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from refiner_cli.data.benchmark import METADATA, SPLIT_FOLDER, read_pairs
from refiner_cli.data.labels import Pair

Pairs = dict[str, tuple[Pair, ...]]
Rows = list[dict[str, str]]


@cache
def photo(shade: int = 0) -> bytes:
    """A small JPEG; one of 256."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, shade // 2)).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def pair_text(pairs: tuple[Pair, ...], separator: str = " ") -> bytes:
    return "\n".join(separator.join(pair) for pair in pairs).encode()


def metadata(rows: Rows) -> bytes:
    stream = io.BytesIO()
    torch.save(rows, stream)
    return stream.getvalue()


def rows_of(pairs: Pairs, name: str = "{state}_{obj}/{split}_{number}.jpg") -> Rows:
    """One image a pair and split, in the order of the published files: by no order at all."""
    return [
        {
            "image": name.format(state=state, obj=obj, split=split, number=number),
            "attr": state,
            "obj": obj,
            "set": split,
        }
        for split in ("test", "train", "val")
        for number, (state, obj) in enumerate(pairs[split])
    ]


# Rows as the published metadata has them beside the useful ones: all of these must be skipped.
USELESS: Rows = [
    {"image": "NA_apple/1.jpg", "attr": "NA", "obj": "apple", "set": "train"},
    {"image": "x/2.jpg", "attr": "nobody", "obj": "knows", "set": "train"},
    {"image": "x/3.jpg", "attr": "nobody", "obj": "knows", "set": "NA"},
]


def zipped(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def split_files(root: str, pairs: Pairs, rows: Rows, separator: str = " ") -> dict[str, bytes]:
    return {
        **{
            f"{root}{SPLIT_FOLDER}/{s}_pairs.txt": pair_text(pairs[s], separator)
            for s in ("train", "val", "test")
        },
        f"{root}{METADATA}": metadata(rows + USELESS),
    }


# --- real pair lists -----------------------------------------------------------------------------


def mit_pairs(splits: Path) -> Pairs:
    """The real lists; of test's seen part, which is not here, the first 400 training pairs stand in."""
    folder = splits / "mit-states"
    train = read_pairs(folder / "train_pairs.txt")
    unseen = read_pairs(folder / "test_unseen_pairs.txt")
    return {"train": train, "val": read_pairs(folder / "val_pairs.txt"), "test": (*train[:400], *unseen)}


def real_pairs(splits: Path, name: str) -> Pairs:
    return {split: read_pairs(splits / name / f"{split}_pairs.txt") for split in ("train", "val", "test")}


# --- the published archives ----------------------------------------------------------------------


def mit_states(rows: Rows) -> bytes:
    """release_dataset.zip: folders with spaces, and folders of adjectives alone that nobody uses."""
    files = {"release_dataset/README.txt": b"readme", "release_dataset/images/adj aged/1.jpg": photo()}
    for number, row in enumerate(rows):
        folder, file = row["image"].split("/")
        files[f"release_dataset/images/{folder.replace('_', ' ')}/{file}"] = photo(number % 256)
    return zipped(files)


BRANDS = ("Boots/Ankle/Nike", "Shoes/Oxfords/L.A.M.B.", "Sandals/Flat/A. Testoni")


def zappos_rows(pairs: Pairs) -> Rows:
    rows = rows_of(pairs, "{state}_{obj}/80{number}.{split}.jpg")
    for number, row in enumerate(rows):
        row["_image"] = f"{BRANDS[number % 3]}/{row['image'].split('/')[1]}"
    return rows


def ut_zappos(rows: Rows, *, dots: bool = True) -> bytes:
    """ut-zap50k-images.zip: by category and brand; some systems lose the last dot of a folder."""
    files = {"ut-zap50k-images/Shoes/Heels/Unused/1.jpg": photo()}
    for number, row in enumerate(rows):
        path = row["_image"] if dots else row["_image"].replace("L.A.M.B./", "L.A.M.B%2E/")
        files[f"ut-zap50k-images/{path}"] = photo(number % 256)
    return zipped(files)


def splits_tar(mit: tuple[Pairs, Rows], zappos: tuple[Pairs, Rows]) -> bytes:
    """compositional_split_natural.tar.gz: both datasets in one."""
    return tarred({**split_files("mit-states/", *mit), **split_files("ut-zap50k/", *zappos)})


def c_gqa(pairs: Pairs, rows: Rows, root: str, more: Mapping[str, bytes] | None = None) -> bytes:
    """cgqa.zip: everything in one, under a top folder or not; images lie flat."""
    images = {f"{root}images/{row['image']}": photo(number % 256) for number, row in enumerate(rows)}
    return zipped({**split_files(root, pairs, rows), **images, "__MACOSX/._images": b"junk", **(more or {})})


def tiny_pairs() -> Pairs:
    """Two states, three objects; one unseen pair in val, one in test."""
    train = (("ripe", "apple"), ("cut", "pear"), ("ripe", "plum"), ("cut", "apple"))
    return {
        "train": train,
        "val": (("ripe", "apple"), ("ripe", "pear")),
        "test": (("cut", "apple"), ("cut", "plum")),
    }
