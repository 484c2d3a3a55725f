"""Models on the Hugging Face Hub: ``hf-hub:OWNER/NAME[@REVISION]``, downloaded once into its usual cache.

The name is also open_clip's for its own models; what the repository holds decides. What is in the cache is
used without a network. A token (``HF_TOKEN``, ``hf auth login``) goes to the Hub alone and into no message.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from refiner_cli._version import __version__
from refiner_cli.core.model_io.checksums import CHECKSUMS, verify_checksums
from refiner_cli.core.model_io.schema import CONFIG
from refiner_cli.core.towers.architectures import HF_HUB
from refiner_cli.core.towers.hub_access import hub_access
from refiner_cli.core.towers.library_messages import first_line
from refiner_cli.errors import FetchError, ModelFileError, UsageError

OWN_FORMATS = "refiner."  # what the "format" in config.json of refiner's models begins with
# of a model
FILES = ("*.json", "*.safetensors", "*.npz", "*.onnx", "*.onnx.data", "README.md", "tokenizer/*")
HTTP_LIBRARIES = {"httpx", "httpx2", "requests"}  # that versions of huggingface_hub use
HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?")
LOG_IN = "Set HF_TOKEN, or run 'hf auth login'."


@dataclass(frozen=True)
class HubName:
    """A repository, at a revision."""

    repository: str  # OWNER/NAME
    revision: str | None = None  # a branch, a tag or a commit; None: the main branch

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{HF_HUB}{self.repository}{at}"

    @classmethod
    def parse(cls, text: str) -> HubName:
        """``hf-hub:OWNER/NAME[@REVISION]`` or without the prefix. Raises UsageError for anything else."""
        found = HUB_NAME.fullmatch(text.removeprefix(HF_HUB))
        if found is None:
            raise UsageError(
                f"{text!r} does not name a repository of the Hub.", hint="Write hf-hub:OWNER/NAME[@REVISION]."
            )
        return cls(found["repository"], found["revision"])


@cache
def hub_model(text: str) -> Path | None:
    """The folder of the refiner model that ``hf-hub:OWNER/NAME[@REVISION]`` names, downloaded and verified.

    Returns:
        None if the repository holds something else (a backbone).

    Raises:
        UsageError: the name has another form.
        FetchError: the repository, the revision or the network is missing, the token is refused, or a
            file arrived damaged.
    """
    name = HubName.parse(text)
    with hub_errors(str(name)):
        try:
            config = huggingface_hub.hf_hub_download(name.repository, CONFIG, revision=name.revision)
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None
        if not is_refiner_config(Path(config)):
            return None
        folder = Path(config).parent
        before = set(folder.rglob("*"))
        huggingface_hub.snapshot_download(name.repository, revision=folder.name, allow_patterns=list(FILES))
    if (folder / CHECKSUMS).is_file() and set(folder.rglob("*")) != before:
        try:
            verify_checksums(folder)
        except ModelFileError as error:
            raise FetchError(
                f"The download of {name} is damaged ({error.message.rstrip('.')}).",
                hint=f"Delete {folder.parents[1]} and run the command again.",
            ) from None
    return folder


def is_refiner_config(file: Path) -> bool:
    """Whether a config.json is that of a refiner model."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and str(content.get("format", "")).startswith(OWN_FORMATS)


def open_repository(name: HubName, *, private: bool) -> None:
    """Make the repository if it is missing. Raises FetchError if it may not be written to."""
    if name.revision:
        raise UsageError(f"--push writes to the main branch, not to {name.revision!r}.")
    with hub_errors(str(name)):
        HfApi(library_name="refiner", library_version=__version__).create_repo(
            name.repository, private=private, exist_ok=True
        )


def push_folder(folder: Path, name: HubName) -> str:
    """Upload the files of a folder in one commit, which holds all of them or does not exist.

    Returns:
        The commit's hash.

    Raises:
        FetchError: the token is refused, or the Hub cannot be reached.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    with hub_errors(str(name)):
        commit = HfApi(library_name="refiner", library_version=__version__).create_commit(
            name.repository,
            [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files],
            commit_message=f"Model exported by refiner {__version__}",
        )
    return str(commit.oid)


@contextlib.contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Let what goes wrong between this machine and the Hub be one FetchError, without the token."""
    disable_progress_bars()
    with hub_access() as host:
        try:
            yield
        except Exception as error:
            found = fetch_error(what, error, host)
            if found is None:
                raise
            raise found from None


def fetch_error(what: str, error: Exception, host: str | None) -> FetchError | None:
    """The sentence for an error of the Hub's client; None for a fault of the program.

    Args:
        host: the Hub's name if it does not resolve.
    """
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    in_transit = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP_LIBRARIES
    unresolved = f" ({host} does not resolve)" if host else ""
    known = (  # the first that holds
        (status == 401, f"The Hub refuses access to {what}: the token is wrong, or missing.", LOG_IN),
        (
            isinstance(error, GatedRepoError) or status == 403,
            f"The token gives no access to {what}.",
            "Ask for access on the Hub, or use another token.",
        ),
        (
            isinstance(error, RevisionNotFoundError),
            f"{what} does not exist: the repository has no such revision.",
            "",
        ),
        (
            isinstance(error, RepositoryNotFoundError),
            f"{what} does not exist on the Hub, or is private.",
            f"Check the name; a private one needs a token. {LOG_IN}",
        ),
        (
            isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled),
            f"{what} is not in the cache, and the Hub cannot be reached{unresolved}.",
            "Check the name and the network.",
        ),
        (isinstance(error, HFValidationError), f"{what} is not a name that the Hub can have.", ""),
        (status > 0, f"The Hub answered {status} for {what}.", "Try again later."),
        (
            type(error) is RuntimeError,  # hf_xet has no class of its own for most of its errors
            f"The transfer of {what} by hf_xet failed ({redacted(first_line(error))}).",
            "Try again, or set HF_HUB_DISABLE_XET=1, which transfers over plain HTTP.",
        ),
        (
            in_transit,
            f"The transfer of {what} failed ({redacted(first_line(error))}).",
            "The same command goes on where it stopped.",
        ),
    )
    return next((FetchError(message, hint=hint) for holds, message, hint in known if holds), None)


def redacted(text: str) -> str:
    """A text without the token of this user."""
    token = huggingface_hub.get_token()
    return text.replace(token, "***") if token else text
