"""Set how many threads torch takes in the thread that calls it, and share them among callers that work at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# More photos at once than this gain little, and each takes memory.
MOST_PLACES = 16

_here = threading.local()


def use(count: int) -> None:
    """Have torch take so many threads in the thread that calls; new threads begin with the number set last."""
    if torch.get_num_threads() != count:  # asked first: a new thread's first question would undo the next line
        torch.set_num_threads(count)


def places(chosen: int | None) -> int:
    """Return how many callers may work at once on the processor: as chosen, or else one for each of the caller's
    threads."""
    return min(torch.get_num_threads(), MOST_PLACES) if chosen is None else chosen


def share(whole: int, at_once: int) -> None:
    """Take in the thread that calls its part of `whole` threads, of which so many callers work at once."""
    _here.whole = whole
    use(max(1, whole // at_once))


@contextmanager
def no_more_at_once(count: int) -> Iterator[None]:
    """While it lasts, there is room for no more than so many callers: a thread that shares takes what others leave."""
    before = torch.get_num_threads()
    whole = getattr(_here, "whole", before)  # who does not share keeps what it has
    use(max(before, whole // count))
    try:
        yield
    finally:
        use(before)
