"""What every decoder needs around it: silence, one kind of error, and a limit on size."""

from __future__ import annotations

import logging
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
from PIL import Image

from oldphoto.errors import BadImageError, OldphotoError


@contextmanager
def as_bad_image(name: str) -> Iterator[None]:
    """Whatever a decoder raises comes out as one BadImageError that begins with the picture's name."""
    try:
        yield
    except TooLargeError as error:
        raise TooLargeError(f"{name} {error}", error.advice, error.size) from error
    except BadImageError as error:
        raise BadImageError(f"{name} {error}", error.advice) from error
    except (MemoryError, OldphotoError):
        raise
    except struct.error as error:
        raise BadImageError(f"{name} is damaged or cut short: its header ends too early") from error
    except Exception as error:
        # Decoders fail on damaged files with nearly every type there is; all of them mean the same here.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        # libjpeg says "unsupported marker" of whatever it finds where a marker should be.
        if any(words in reason.lower() for words in _UNSUPPORTED) and "marker" not in reason:
            text = f"{name} is of a kind that is not read here: {reason}"
            raise BadImageError(text, "convert it to an 8- or 16-bit TIFF or PNG") from error
        raise BadImageError(f"{name} is damaged or cut short: {reason}") from error


# What decoders say of files that may well be sound.
_UNSUPPORTED = (
    *("unsupported", "not supported", "unknown pixel mode", "cannot handle", "not implemented", "unimplemented"),
    *("unknown psm", "unknown data encoding", "no decoder"),
)


# What decoders take whatever the size is: bands, buffers, tables.
_WORKING = 8 << 20


class TooLargeError(BadImageError):
    """A photo of more pixels than are to be decoded. size: its width and height."""

    def __init__(self, message: str, advice: str, size: tuple[int, int]) -> None:
        super().__init__(message, advice)
        self.size = size


@dataclass(frozen=True)
class Limits:
    """What may be decoded; every reader asks `check` before it does so.

    max_pixels: the largest width x height; None for any.
    admit: is called with the bytes that decoding takes beside the file's content. It returns when there is room for
        them, or raises.
    """

    max_pixels: int | None = None
    admit: Callable[[int], None] = lambda size: None

    def check(self, width: int, height: int, pixel_bytes: float) -> None:
        """Raise for a photo that is not to be decoded. pixel_bytes: the most memory a pixel takes meanwhile."""
        if width <= 0 or height <= 0:
            raise BadImageError(f"is {width} x {height} pixels: there is nothing in it")
        if self.max_pixels is not None and width * height > self.max_pixels:
            millions = f"{width * height / 1e6:,.1f} million pixels"
            text = f"is {width} x {height}, {millions}; the limit is {self.max_pixels / 1e6:,.1f} million"
            advice = f"if you trust the file, allow it with --max-pixels {width * height}"
            raise TooLargeError(text, advice, (width, height))
        if pixel_bytes:
            self.admit(int(width * height * pixel_bytes) + _WORKING)


_DECODER_LOCK = threading.Lock()
# OpenCV 4 has it at the top, OpenCV 5 in a module of its own.
_set_cv2_log_level: Callable[[int], int] = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel


def _drop_record(_: logging.LogRecord) -> bool:
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the decoders' warnings, logs and Pillow's size limit, and gives each back as it was.

    Every one of these is global, hence the lock: a second thread would otherwise restore the first one's silence.
    """
    with _DECODER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loggers = [logging.getLogger(name) for name in ("PIL.TiffImagePlugin", "PIL.PngImagePlugin")]
        for logger in loggers:
            logger.addFilter(_drop_record)
        level, limit = _set_cv2_log_level(0), Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None  # max_pixels is checked instead, before anything is decoded
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
            _set_cv2_log_level(level)
            for logger in loggers:
                logger.removeFilter(_drop_record)


@contextmanager
def no_standard_error() -> Iterator[None]:
    """For libtiff inside Pillow and libpng inside OpenCV, which print lines of their own about a damaged file."""
    try:
        kept = os.dup(2)
    except OSError:  # a program without standard error
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def animation() -> BadImageError:
    """For a format whose pictures beyond the first would be lost."""
    return BadImageError("is an animation, not a photo", "save the picture you want as a file of its own")
