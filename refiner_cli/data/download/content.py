"""What a file is, by its first bytes: servers and people hand over error pages as archives."""

from __future__ import annotations

import re


def sniff_content(head: bytes) -> str | None:
    """What a file is, in words, if its first 512 bytes are not those of a zip or tar archive."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b")) or head[257:262] == b"ustar":
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text:
        return "nothing"
    if text.startswith(b"<"):
        words = text.decode("utf-8", "replace")
        told = re.search(r"<(title|code)[^>]*>(.*?)</\1", words, re.IGNORECASE | re.DOTALL)
        is_page = re.match(r"<(!doctype\s+html|html|head|body)", words, re.IGNORECASE)
        what = "a web page" if is_page else "an error message"
        return f"{what} ({' '.join(told[2].split())!r})" if told else what
    return "something that is neither a zip nor a tar archive"
