"""Cope with what started this process: it may hang up, end it, close its streams, or leave while it is being told
something."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, TextIO

INTERRUPTED = 130
# Two signals within so long are one wish: a key pressed twice, or one sent to the process and to its group.
ONCE_SECONDS = 1.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")


class _Signals:
    """The first signal is a KeyboardInterrupt, so that all is left as after Ctrl-C; one after it ends the process."""

    def __init__(self) -> None:
        self.first: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = now
            raise KeyboardInterrupt
        if now - self.first > ONCE_SECONDS:
            with suppress(OSError):
                os.write(2, b"interrupted again: leaving at once\n")
            os._exit(INTERRUPTED)


def end_as_ctrl_c() -> None:
    """Have SIGTERM and SIGHUP end this program as Ctrl-C does. Signals that whoever started it ignores stay ignored."""
    if any(isinstance(signal.getsignal(number), _Signals) for number in _numbers()):
        return
    handler = _Signals()
    for number in _numbers():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Let a process that is on its way out go on: all is done, and a traceback would say nothing."""
    for number in _numbers():
        signal.signal(number, signal.SIG_IGN)


def _numbers() -> list[int]:
    return [int(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name)]


class Unfailing:
    """A text stream to which writing never fails: what cannot be told is left out, and the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write if it can be done; the number of characters, as if it had been."""
        with suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if it can be done."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def show_any_name() -> None:
    """Have stdout and stderr write characters that their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def let_go(stream: TextIO | None) -> None:
    """Have what a stream still holds go nowhere if it cannot be written: else Python fails over it in the end."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            assert stream is not None
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def has_left(error: BaseException) -> bool:
    """Whether an error says that the reader of a stream is gone, as `head` is once it has its lines."""
    return isinstance(error, OSError) and error.errno == errno.EPIPE
