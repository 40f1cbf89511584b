"""Measure memory: what there is, what this process holds, and whether an error says that it ran out. No torch.

The photos in work at once share it: see Line. Every command starts here: psutil is imported where it is needed.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary, ref

from oldphoto.errors import OldphotoError, OutOfMemoryError

# Of the memory that is free, a photo may take this share where the user does not choose.
DEFAULT_SHARE = 0.5
_CGROUP = Path("/sys/fs/cgroup")
# mallopt(3): the names of glibc's settings.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def available() -> int:
    """Bytes that can be had without swapping, in this container where there is one."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # Cached file pages are given back when memory is asked for.
    return free if limit == "max" else max(0, min(free, int(limit) - used + int(facts.get("inactive_file", 0))))


def reuse_pages() -> None:
    """Have large arrays take the memory that earlier ones left, for as long as this process lasts.

    By default glibc asks the system for each anew, which hands out pages one by one, cleared: a tenth of a restoration.
    All threads use one heap, so that it stays small, and 256 MB at its end are kept. Does nothing where there is no
    glibc, or where the user has set it up. To be called before threads are started.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


def give_back() -> None:
    """Let go of what the heap keeps for later. Does nothing where there is no glibc."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(function: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def pages(size: int) -> mmap.mmap:
    """Memory for what is large and long held: bytes that go back to the system as soon as nobody refers to them.

    In the heap that reuse_pages keeps, small arrays would settle in the room it leaves. Raises MemoryError.
    """
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, size)
        return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {gigabytes(size)}") from error


def resident() -> int:
    """Bytes of memory this process holds now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


class Place:
    """A photo's place in the line or among those in work; it is given up at the latest when nobody refers to it."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


class Line:
    """A queue in which photos wait until there is memory for them beside those in work.

    A thread that is `reading` keeps the place at its head until its photo is admitted, or until it leaves: no smaller
    photo goes first, and only one waits decoded. A photo that fits beside no other is admitted alone.

    An interrupt can fall into the very line that gives a place up. So the line only refers to places weakly: they are
    held by the frames of `reading` and `admitted`, and end with them, however these end.
    """

    # Every wait is a look from time to time: memory may become free without notice, and a thread that waits for ever
    # cannot be interrupted.
    LOOK_SECONDS = 0.02

    def __init__(self) -> None:
        # A lock of C, held for moments: Python lets no interrupt in between taking it and the block that it guards.
        self._lock = threading.RLock()
        self._head: Callable[[], Place | None] = _nobody
        self._own = threading.local()  # the place of the thread that is reading
        self._needs: WeakKeyDictionary[Place, int] = WeakKeyDictionary()
        self._before = 0  # what the process held when the first of the photos in work was admitted

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Wait for the head of the line, and keep it until the thread's photo is admitted, or to the end."""
        place = Place()
        self._own.reading = ref(place)
        self._stepped_up()
        try:
            yield
        finally:
            self._step_down()
            del place

    def _stepped_up(self) -> Place:
        """Wait for the head of the line, and take it: for the place of `reading` in this thread, or for a new one."""
        place = getattr(self._own, "reading", _nobody)() or Place()
        while True:
            with self._lock:
                head = self._head()
                if head is not None and head.thread is place.thread:
                    return head
                if head is None or not head.thread.is_alive():
                    self._head = ref(place)
                    return place
            del head
            time.sleep(self.LOOK_SECONDS)

    def _step_down(self) -> None:
        with self._lock:
            head = self._head()
            if head is not None and head.thread is threading.current_thread():
                self._head = _nobody

    def _in_work(self) -> list[int]:
        """Return the bytes that the photos in work need."""
        with self._lock:
            return [need for place, need in self._needs.items() if place.thread.is_alive()]

    def held(self) -> int:
        """Bytes this process holds besides what is for the photos in work, which may not have taken it yet."""
        needs = self._in_work()
        return max(self._before, resident() - sum(needs)) if needs else resident()

    def make_room(self, need: int) -> None:
        """Give memory back to the system if the photos in work would otherwise exceed what they were admitted with.

        need: bytes that one of them is about to take.
        """
        if resident() + need > self._before + sum(self._in_work()):
            give_back()

    def wait_for(self, need: int, most: int, least: int) -> None:
        """Wait, at the head of the line, which is kept, until `need` bytes more fit beside the photos in work.

        most: what the process should stay below; a photo that is alone may take more, up to `least`. Raises
        OutOfMemoryError where it would take even more than that.
        """
        place = self._stepped_up()  # of `reading`, which keeps it
        while (needs := self._in_work()) and self.held() + sum(needs) + need > most:
            time.sleep(self.LOOK_SECONDS)
        if self.held() + sum(needs) + need > least:
            give_back()
            if (whole := resident() + need) > least:
                raise OutOfMemoryError(
                    f"reading the photo takes {gigabytes(whole)} of memory, more than the {gigabytes(least)} it may",
                    f"give --max-memory {gigabytes(whole)} or more, where there is as much, or make a smaller scan",
                )
        del place

    @contextmanager
    def admitted(self, need: int, most: int) -> Iterator[int]:
        """Wait until a photo that takes `need` bytes fits, the process staying below `most`; it is in work meanwhile.

        Gives how many such photos fit at once.
        """
        place = self._stepped_up()
        try:
            while (fit := self._fit(place, need, most)) is None:
                time.sleep(self.LOOK_SECONDS)
        finally:
            self._step_down()
        try:
            yield fit
        finally:
            with self._lock:
                self._needs.pop(place, None)

    @contextmanager
    def writing(self, need: int, most: int) -> Iterator[None]:
        """Count a photo that is done among those in work while it is written, which takes `need` bytes more.

        It waits until these fit beside the photos in work, but not in the line: who stands there may wait for what this
        photo holds.
        """
        place = Place()
        while self._fit(place, need, most) is None:
            time.sleep(self.LOOK_SECONDS)
        try:
            self.make_room(need)
            yield
        finally:
            with self._lock:
                self._needs.pop(place, None)

    def _fit(self, place: Place, need: int, most: int) -> int | None:
        """Admit a photo if there is memory for it, and say how many such photos fit; None where there is none."""
        with self._lock:
            needs = self._in_work()
            if needs and self.held() + sum(needs) + need > most:
                return None
            if not needs:
                self._before = resident()
            self._needs[place] = need
            return max(1, (most - self.held()) // max(1, need))


def _nobody() -> None:
    return None


line = Line()


def limit(chosen: int | None) -> int:
    """Return how many bytes this process may hold in all: as the user chose, or else a share of what is free.

    What photos in work have taken of it counts as free: the limit of one does not depend on the others.
    """
    if chosen is not None:
        return chosen
    held = line.held()
    return held + int((available() + max(0, resident() - held)) * DEFAULT_SHARE)


def admit_reading(chosen: int | None, need: int) -> None:
    """Wait until a photo may take `need` bytes more while it is read; until it is admitted it stays at the line's head.

    chosen: what the user allows this process. Raises OutOfMemoryError where that, or else all there is, is not enough.
    """
    line.wait_for(need, limit(chosen), resident() + available() if chosen is None else chosen)


def foresee_writing(chosen: int | None, need: int, format: str) -> None:
    """Raise OutOfMemoryError where a photo, once restored, could not be written: before its restoration.

    chosen: what the user allows this process; None for whatever there is. need: bytes that the restored photo and
    writing it take, beside what is held now. format: which it is written in.
    """
    if chosen is None or line.held() + need <= chosen:
        return
    give_back()
    if (whole := line.held() + need) > chosen:
        text = f"writing it as {format} takes {gigabytes(whole)} of memory, more than the {gigabytes(chosen)} allowed"
        raise OutOfMemoryError(text, f"give --max-memory {gigabytes(whole)} or more, or write a .tif file instead")


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
