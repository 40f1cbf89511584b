"""A photo on stdin or stdout, and names on stdin."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from oldphoto.cli.terminal import put_bytes
from oldphoto.errors import FileAccessError, UsageError
from oldphoto.runs.request import RunRequest

# A photo on stdin is kept on the disk meanwhile, a list of names in memory.
LARGEST_STDIN, LARGEST_LIST = 4 << 30, 256 << 20


def temporary_folder(stack: ExitStack) -> Path:
    """A new folder that goes with `stack`. Raises FileAccessError where there is no place for one."""
    try:
        return Path(stack.enter_context(TemporaryDirectory(prefix="oldphoto-")))
    except OSError as error:
        text = f"cannot make a temporary folder: {error.strerror or error}"
        raise FileAccessError(text, "set TMPDIR to a folder that can be written to, or name files") from error


def wanted(request: RunRequest) -> bool:
    """Whether the photo comes on stdin or goes to stdout."""
    return "-" in request.inputs or request.output == "-"


def check(request: RunRequest, *, as_json: bool) -> None:
    """Raise UsageError where a photo on stdin or stdout does not go together with what else was asked for."""
    inputs, output = request.inputs, request.output
    if len(inputs) != 1 or request.from0 or request.watch:
        raise UsageError("- stands for one photo", "give one input, and - or a file as output")
    if as_json or request.record_file or request.compare or request.report:
        text = "- does not go with --json, --manifest, --resume, --compare or --report"
        raise UsageError(text, "name files instead")
    if inputs == ("-",) and output != "-" and not Path(output).suffix:
        raise UsageError("a photo on stdin has no name of its own", "name the output file with -o, or - for stdout")
    if output == "-" and sys.stdout is None:
        raise FileAccessError("cannot write to stdout: it is closed", "send it to a file, or name one with -o")
    if output == "-" and sys.stdout.isatty():
        raise UsageError("a photo is not written to a terminal", "send stdout to a file or another program")


def open_pipes(request: RunRequest, spool: Path) -> RunRequest:
    """The request with files in the folder `spool` for stdin, which is read to its end here, and for stdout.

    Raises FileAccessError where stdin is closed or has more than can be kept.
    """
    if request.inputs == ("-",):
        _keep_stdin(spool)
        request = replace(request, inputs=(str(spool / "stdin"),))
    return replace(request, output=str(spool / "stdout")) if request.output == "-" else request


def _keep_stdin(spool: Path) -> None:
    if sys.stdin is None:
        raise FileAccessError("cannot read stdin: it is closed", "send a photo to it, or name a file")
    try:
        # Whatever comes, the disk is not filled.
        most = min(LARGEST_STDIN, shutil.disk_usage(spool).free // 2)
        with (spool / "stdin").open("wb") as file:
            while chunk := sys.stdin.buffer.read(1 << 20):
                if file.tell() + len(chunk) > most:
                    text = f"there is more on stdin than {spool.parent} should hold: {most:,} bytes"
                    raise FileAccessError(text, "name a file instead, or set TMPDIR to a larger disk")
                file.write(chunk)
    except OSError as error:
        text = f"cannot keep the photo from stdin in {spool.parent}: {error.strerror}"
        raise FileAccessError(text, "free some space, or set TMPDIR to another disk") from error


def close_pipes(spool: Path) -> None:
    """Send the photo that was written for stdout there, if there is one."""
    for path in (spool / "stdout").glob("*"):
        with path.open("rb") as file:
            put_bytes(partial(shutil.copyfileobj, file))


def read_names(source: str) -> list[str]:
    """File names with a NUL after each, from a file or from stdin for "-"."""
    if source == "-" and sys.stdin is None:
        raise FileAccessError("cannot read stdin: it is closed", "send names to it, or name a file")
    try:
        # A pipe is welcome, but it has to end.
        if source == "-":
            data = sys.stdin.buffer.read(LARGEST_LIST + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(LARGEST_LIST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileAccessError(f"cannot read {source}: {reason}", "check the name") from error
    if len(data) > LARGEST_LIST:
        raise UsageError(f"{source} has more than {LARGEST_LIST:,} bytes of names", "name a folder with --recursive")
    return [os.fsdecode(name) for name in data.split(b"\0") if name]
