"""Every error a user can cause, with its exit code.

::

    RefinerError                 1  failed while running
    ├── UsageError               2  wrong usage
    ├── ConfigError              3  a configuration key or value
    │   └── OptionError          2  one that was given on the command line
    ├── DatasetError             3  a dataset or one of its files
    │   └── UnreadableImageError  one of its images
    ├── ModelFileError           3  a run, an exported model, or one of its files
    ├── ScoresError              3  a file of scores
    ├── InputError               3  anything else that is read: photos, archives, a folder of runs or parts
    ├── FetchError               4  a download, or its verification
    └── EnvironmentLacksError    6  a device or an optional package

Partly done (5) and interrupted (130, 143) are outcomes, not errors; see ``cli/console.py``.
The message is one sentence that says what is wrong and where; the hint says what to do.
"""

from __future__ import annotations


class RefinerError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class UsageError(RefinerError):
    exit_code = 2


class ConfigError(RefinerError):
    exit_code = 3


class OptionError(ConfigError):
    """A configuration value that was given on the command line."""

    exit_code = 2


class DatasetError(RefinerError):
    exit_code = 3


class UnreadableImageError(DatasetError):
    """Needs all images, and one cannot be decoded."""


class ModelFileError(RefinerError):
    exit_code = 3


class ScoresError(RefinerError):
    exit_code = 3


class InputError(RefinerError):
    """What a command is to read is not there, or is something else."""

    exit_code = 3


class FetchError(RefinerError):
    exit_code = 4


class EnvironmentLacksError(RefinerError):
    exit_code = 6
