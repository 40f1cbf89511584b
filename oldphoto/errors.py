"""Every failure a user can meet: one tree, each with its exit code and the next step to take."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; documented and stable."""

    DONE = 0
    BUG = 1
    USAGE = 2
    NO_INPUT = 3
    SOME_FAILED = 4
    FILE_ACCESS = 5
    REFUSED_OVERWRITE = 6
    WEIGHTS_UNAVAILABLE = 7
    WEIGHTS_CORRUPT = 8
    OUT_OF_MEMORY = 9
    BAD_IMAGE = 10
    INTERRUPTED = 130


class OldphotoError(Exception):
    """Base of the tree. `str()` is one line; `advice` says what to do next and may be empty."""

    exit_code: ExitCode = ExitCode.BUG

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.advice = advice


class UsageError(OldphotoError):
    """Options that contradict each other or a value out of range."""

    exit_code = ExitCode.USAGE


class NoInputError(OldphotoError):
    """Nothing matched the inputs given."""

    exit_code = ExitCode.NO_INPUT


class FileAccessError(OldphotoError):
    """A file or folder cannot be read or written."""

    exit_code = ExitCode.FILE_ACCESS


class RefusedOverwriteError(OldphotoError):
    """Going on would overwrite an input, an existing output, or one output with another."""

    exit_code = ExitCode.REFUSED_OVERWRITE


class WeightsUnavailableError(OldphotoError):
    """A weight file is neither cached nor to be had (offline, hub unreachable, not in this set)."""

    exit_code = ExitCode.WEIGHTS_UNAVAILABLE


class WeightsCorruptError(OldphotoError):
    """A weight file's size, sha256, keys or shapes are not what weights.lock and the config say."""

    exit_code = ExitCode.WEIGHTS_CORRUPT


class OutOfMemoryError(OldphotoError):
    """The photo does not fit in memory with these options."""

    exit_code = ExitCode.OUT_OF_MEMORY


class BadImageError(OldphotoError):
    """The file is not a picture, is damaged, empty, or larger than the limit."""

    exit_code = ExitCode.BAD_IMAGE
