"""The metadata list of a benchmark, a pickle by torch.save, read as plain data.

A pickle may name code to run, and a few bytes of it may claim gigabytes. Here only the operations
that build lists, dictionaries, tuples, text and numbers exist, and their number is limited, so that
reading takes at most about 2 GB of memory whatever the file holds. PyTorch is not needed for it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

MAX_METADATA_BYTES = 64 << 20  # of the file, and of the pickle in it; 200,000 rows take 14 MB
MAX_OPERATIONS = 10_000_000  # of the pickle; 200,000 rows take 3,500,000
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch.save before version 1.6
_PLAIN_OPERATIONS = (
    pickle.PROTO + pickle.FRAME + pickle.STOP + pickle.MARK + pickle.POP + pickle.POP_MARK + pickle.DUP
    + pickle.NONE + pickle.NEWTRUE + pickle.NEWFALSE
    + pickle.INT + pickle.BININT + pickle.BININT1 + pickle.BININT2 + pickle.LONG1
    + pickle.FLOAT + pickle.BINFLOAT
    + pickle.STRING + pickle.BINSTRING + pickle.SHORT_BINSTRING
    + pickle.UNICODE + pickle.BINUNICODE + pickle.SHORT_BINUNICODE + pickle.BINUNICODE8
    + pickle.EMPTY_LIST + pickle.LIST + pickle.APPEND + pickle.APPENDS
    + pickle.EMPTY_DICT + pickle.DICT + pickle.SETITEM + pickle.SETITEMS
    + pickle.EMPTY_TUPLE + pickle.TUPLE + pickle.TUPLE1 + pickle.TUPLE2 + pickle.TUPLE3
    + pickle.GET + pickle.BINGET + pickle.LONG_BINGET
    + pickle.PUT + pickle.BINPUT + pickle.LONG_BINPUT + pickle.MEMOIZE
)  # fmt: skip


def load_plain(file: Path) -> Any:
    """What torch.save wrote, if it is plain data.

    Raises:
        OSError: the file cannot be read.
        Exception: anything, for a file that is damaged, hostile, too large, or not by torch.save.
    """
    if file.exists() and not file.is_file():  # a pipe would wait for ever
        raise ValueError("it is not a regular file")
    with file.open("rb") as opened:
        content = opened.read(MAX_METADATA_BYTES + 1)
    _require_size(len(content))
    stream = io.BytesIO(content)
    if not content.startswith(b"PK"):
        magic, _version, _system = (_PlainUnpickler(stream).load() for _ in range(3))
        if magic != _TORCH_MAGIC:
            raise ValueError("it is not a file by torch.save")
        return _PlainUnpickler(stream).load()
    with zipfile.ZipFile(stream) as archive:
        (member,) = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("it is not a file by torch.save")
        _require_size(member.file_size)
        return _PlainUnpickler(io.BytesIO(archive.read(member))).load()


def _require_size(count: int) -> None:
    if count > MAX_METADATA_BYTES:
        raise ValueError(f"it has more than {MAX_METADATA_BYTES >> 20} MB")


# The C unpickler cannot be limited: it allocates a table as large as the largest index in the file.
class _PlainUnpickler(pickle._Unpickler):  # noqa: SLF001
    """An unpickler without any operation that calls something."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="utf-8")
        self.operations = 0


def _limited(operation: Any) -> Any:
    def run(unpickler: _PlainUnpickler) -> None:
        unpickler.operations += 1
        if unpickler.operations > MAX_OPERATIONS:
            raise ValueError(f"it takes more than {MAX_OPERATIONS:,} steps to read")
        operation(unpickler)

    return run


def _refuse(_: object) -> None:
    raise ValueError("it holds something else than lists, dictionaries, text and numbers")


_PlainUnpickler.dispatch = {
    key: _limited(operation) if key in _PLAIN_OPERATIONS else _refuse
    for key, operation in pickle._Unpickler.dispatch.items()  # noqa: SLF001
}
