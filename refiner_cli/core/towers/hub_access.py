"""Asking the Hugging Face Hub through the libraries' client: quietly, and not where no answer can come."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub.constants as hub
import open_clip
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from refiner_cli.core.towers.library_messages import first_line, quiet_libraries
from refiner_cli.errors import FetchError


def unresolved_host() -> str | None:
    """The Hub's host name if it does not resolve; None if it does, or if a proxy resolves it."""
    host = urlsplit(hub.ENDPOINT).hostname
    if not host or urllib.request.getproxies().keys() & {"http", "https", "all"}:
        return None
    return None if resolves(host) else host


@cache
def resolves(host: str) -> bool:
    """Whether a name has an address; looked up once."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


@contextlib.contextmanager
def hub_access() -> Iterator[str | None]:
    """Let the client use its cache alone where the Hub's name does not resolve: it would try for a minute.

    Gives the name that does not resolve, else None. Where the user set HF_HUB_OFFLINE no name is looked up.
    """
    before = hub.HF_HUB_OFFLINE
    host = None if before else unresolved_host()
    hub.HF_HUB_OFFLINE = before or host is not None
    try:
        with quiet_libraries():
            yield host
    finally:
        hub.HF_HUB_OFFLINE = before


def failure(error: BaseException, host: str | None) -> str:
    """Why the Hub did not answer, on one line; ``host`` is what ``hub_access`` gave."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled):
        cause = cause.__cause__ or cause.__context__
    return f"no host name resolves: {host}" if host and cause else first_line(error)


def download_hub_file(repository: str, file: str) -> Path:
    """A file of a Hugging Face repository, downloaded once into the usual cache. Raises FetchError."""
    with hub_access() as host:
        try:
            return Path(str(open_clip.pretrained.download_pretrained_from_hf(repository, file)))
        except Exception as error:  # noqa: BLE001 - the hub's client raises a dozen unrelated kinds
            raise FetchError(
                f"The file {file} of hf-hub:{repository} cannot be downloaded ({failure(error, host)})."
            ) from None
