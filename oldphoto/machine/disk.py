"""Open, sync and move files on any file system: asked here, so that nobody else has to know.

Paths are of any origin: too long, in folders that may not be looked into, links in a circle, pipes. Python's own
methods raise for some of them, and wait for ever at others.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

# What fsync says where there is nothing to make durable: on some network and FUSE file systems.
_NO_FSYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_folder(path: Path | str) -> bool:
    """Whether a path leads to a folder; False also where that cannot be seen."""
    return os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises where a folder may not be looked into


def is_file(path: Path | str) -> bool:
    """Whether a path leads to a regular file; False also where that cannot be seen."""
    return os.path.isfile(path)  # noqa: PTH113


def exists(path: Path | str) -> bool:
    """Whether a path leads to anything; False also where that cannot be seen."""
    return os.path.exists(path)  # noqa: PTH110


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, also for a pipe, a socket, a device or a folder.

    These are never opened: a pipe would wait for a writer, a device may never end.
    """
    check_regular(path)
    # Without waiting, should the file have become a pipe meanwhile.
    without_waiting = getattr(os, "O_NONBLOCK", 0)
    handle = open(path, "rb", opener=lambda name, flags: os.open(name, flags | without_waiting))  # noqa: SIM115
    try:
        _check_regular(path, os.fstat(handle.fileno()))
    except OSError:
        handle.close()
        raise
    return handle


def check_regular(path: Path) -> None:
    """Raise OSError unless a path leads to a regular file that can be seen; IsADirectoryError for a folder."""
    _check_regular(path, path.stat())


def _check_regular(path: Path, facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "no file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))


def read_file(path: Path) -> bytes:
    """The content of a regular file. Raises OSError as open_file does."""
    with open_file(path) as handle:
        return handle.read()


def sync(handle: BinaryIO) -> None:
    """Wait until what was written to a file is on the disk, where the file system can tell. Raises OSError."""
    handle.flush()
    try:
        os.fsync(handle.fileno())
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def move(part: Path, path: Path, *, replace: bool = True) -> None:
    """Give a file its name, in one step. Raises OSError: FileExistsError for a name taken, unless it may `replace`."""
    if replace:
        part.replace(path)
        return
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        part.replace(path)
    else:
        part.unlink()
