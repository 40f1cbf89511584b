"""How much memory there is, how much this process holds, and whether an error says that it ran out. No torch."""

from __future__ import annotations

import math
from pathlib import Path

import psutil

from oldphoto.errors import OldphotoError, OutOfMemoryError

# Of the memory that is free, a photo may take this share where the user does not choose.
DEFAULT_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")


def available() -> int:
    """Bytes that can be had without swapping, in this container where there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # Cached file pages are given back when memory is asked for.
    return free if limit == "max" else max(0, min(free, int(limit) - used + int(facts.get("inactive_file", 0))))


def resident() -> int:
    """Bytes of memory this process holds now."""
    return int(psutil.Process().memory_info().rss)


def limit(chosen: int | None) -> int:
    """What this process may hold in all, in bytes: as the user chose, or else a share of what is free."""
    return resident() + int(available() * DEFAULT_SHARE) if chosen is None else chosen


def ran_out(error: BaseException) -> bool:
    """Whether an error of Python, torch or a library means that memory ran out."""
    # By name and text, since torch is not imported here: its CPU allocator raises a plain RuntimeError.
    if isinstance(error, OldphotoError):
        return False
    text = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text))


def out_of_memory(size: tuple[int, int] | None = None) -> OutOfMemoryError:
    """The error for a photo, (width, height), that does not fit even in the thinnest strips."""
    photo = "" if size is None else f" for this photo of {size[0]} x {size[1]} pixels"
    advice = (
        "close other programs, or try --no-faces, --model compact, --device cpu if it ran on a GPU, or a smaller scan"
    )
    return OutOfMemoryError(f"out of memory{photo}", advice)


def gigabytes(size: int) -> str:
    """1500000000 -> "1.5GB", as --max-memory takes it; rounded up, so that it is enough."""
    return f"{math.ceil(size / 1e8) / 10:.1f}GB"
