"""What a file is, by its first bytes: HTML error pages are often saved as archives."""

from __future__ import annotations

import re
from pathlib import Path

from refiner_cli.data.disk import os_errors_as
from refiner_cli.data.download.archive import Archive, ArchiveError
from refiner_cli.data.download.tar_archive import TarArchive
from refiner_cli.data.download.zip_archive import ZipArchive

SNIFFED = 512  # bytes that suffice to recognise a file


def open_archive(path: Path) -> Archive:
    """Open a zip or tar archive, recognised by its content.

    Raises:
        ArchiveError: it is not an archive (a saved error page is named), damaged, or refused.
        FetchError: it cannot be read.
    """
    with os_errors_as(f"reading {path}"):
        with path.open("rb") as stream:
            head = stream.read(4096)
        if kind := sniff_content(head):
            raise ArchiveError(path, f"is {kind}", "Fetch it again, or by hand in a browser.")
        return ZipArchive(path) if head.startswith(b"PK") else TarArchive(path)


def sniff_content(head: bytes) -> str | None:
    """Describe a file by its first bytes; None if they are those of a zip or tar archive."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b")) or head[257:262] == b"ustar":
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "an empty file"
    if text.startswith(b"<"):
        words = text.decode("utf-8", "replace")
        title = re.search(r"<(title|code)[^>]*>(.*?)</\1", words, re.IGNORECASE | re.DOTALL)
        is_page = re.match(r"<(!doctype\s+html|html|head|body)", words, re.IGNORECASE)
        what = "a web page" if is_page else "an error message"
        return f"{what} ({' '.join(title[2].split())!r})" if title else what
    return "neither a zip nor a tar archive"
