"""Photos as they arrive in a folder: each is taken once nobody writes to it any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator
from pathlib import Path

from oldphoto.errors import NoInputError
from oldphoto.runs.batch import stamp
from oldphoto.runs.planning import Plan, Planned

# A file is whole when it has not changed for so long. Scanners and copies over a network write in bursts.
PAUSE_SECONDS = 2.0


def arrivals(
    plan: Callable[[], Plan], in_work: Container[Path] = (), clock: Callable[[], float] = time.monotonic
) -> Iterator[Planned | None]:
    """Look again every PAUSE_SECONDS, and yield each photo whose size and time are those of the last look; no end.

    None says that there is none at the moment. plan: what is there and still to be restored. in_work: the photos that
    are not yielded now. A photo that failed is yielded again when its file changes.
    """
    seen: dict[Path, object] = {}
    taken: dict[Path, object] = {}
    while True:
        for photo in _waiting(plan):
            now = stamp(photo.source)
            if now is None or taken.get(photo.source) == now or photo.source in in_work:
                continue
            if seen.get(photo.source) == now:
                taken[photo.source] = now
                yield photo
            seen[photo.source] = now
        looked = clock()
        yield None
        while clock() - looked < PAUSE_SECONDS:
            yield None


def _waiting(plan: Callable[[], Plan]) -> tuple[Planned, ...]:
    try:
        return plan().photos
    except NoInputError:
        return ()  # nothing has arrived yet
