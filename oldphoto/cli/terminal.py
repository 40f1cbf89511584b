"""Print what all commands print in one way: results on stdout, errors and downloads on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, cast

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from oldphoto.errors import FileAccessError, OldphotoError
from oldphoto.machine.surroundings import Unfailing

if TYPE_CHECKING:
    from oldphoto.weights import WeightFile


def shown(value: object) -> str:
    """A path or name for one line of text: control characters and undecodable bytes become escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(value)
    )


def stderr() -> Console:
    """The console for everything that is not a result; what it cannot be told is left out."""
    file = None if sys.stderr is None else cast("IO[str]", Unfailing(sys.stderr))
    return Console(file=file, stderr=True, highlight=False, soft_wrap=True)


def put(text: str, file: IO[str] | None = None) -> None:
    """One line of results on stdout. Raises FileAccessError if it cannot be written, its cause the OSError."""
    try:
        typer.echo(text, file=file)
    except OSError as error:
        raise FileAccessError(f"cannot write to stdout: {error.strerror}") from error


def put_bytes(write: Callable[[IO[bytes]], object]) -> None:
    """Have bytes written to stdout. Raises FileAccessError as put does."""
    if sys.stdout is None:
        raise FileAccessError("cannot write to stdout: it is closed")
    try:
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise FileAccessError(f"cannot write to stdout: {error.strerror}") from error


def print_error(error: BaseException, console: Console, about: str = "") -> None:
    """One red line, and the advice below it if the error has some."""
    known = isinstance(error, OldphotoError)
    text = shown(error) if known else f"unexpected {type(error).__name__}: {shown(error)}"
    console.print(Text(f"error: {about}{text}", style="red"))
    if isinstance(error, OldphotoError) and error.advice:
        console.print(Text(f"       {shown(error.advice)}"))


def print_json(value: dict[str, Any] | list[Any], file: IO[str] | None = None) -> None:
    """One line of JSON on stdout; ASCII, so that any file name survives any locale."""
    put(json.dumps(value), file=file)


class Downloads:
    """One bar per file that is fetched: name, bytes, rate, time left; off a terminal, one line per file."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console = console
        self.lines = not quiet and not console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, file: WeightFile, done: int, total: int | None) -> None:
        """`done` of `total` bytes of a file are here; `total` is None where nobody knows."""
        if file.path not in self.tasks:
            self.progress.start()
            self.tasks[file.path] = self.progress.add_task(file.net, total=total)
            if self.lines:
                self.console.print(Text(f"fetching {file.path}{'' if total is None else f' ({megabytes(total)})'}"))
        self.progress.update(self.tasks[file.path], completed=done, total=total)


def megabytes(count: int | None) -> str:
    """A number of bytes for people; a question mark where nobody knows."""
    return "? MB" if count is None else f"{count / 1e6:.1f} MB"
