"""Photos as they arrive in a folder: each is taken once nobody writes to it any more, and again once it has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from oldphoto.errors import NoInputError, OldphotoError, RefusedOverwriteError, UsageError
from oldphoto.machine.disk import exists, is_folder
from oldphoto.records.manifest import Record, absolute, difference
from oldphoto.runs.batch import Outcome, remove_left_over, stamp
from oldphoto.runs.planning import Plan, Planned

# A file is whole when it has not changed for so long. Scanners and copies over a network write in bursts.
PAUSE_SECONDS = 2.0


class Watch:
    """An iterator without end over the photos to restore; None says that there is none at the moment.

    It looks again every PAUSE_SECONDS, and gives each photo whose size and time are those of the last look. What counts
    is what was seen of a photo, not whether its output is there: pages may be appended, and a copy may first get its
    size and then its bytes. Nothing that somebody else wrote or changed is replaced.

    folder: is waited for if it is not there. plan: all photos in it, whether or not their outputs exist, as
        planning.plan gives them for a service.
    stale: why a photo that its record calls restored is to be restored again, or None.
    records: those of earlier runs by output. overwrite: outputs of which there is no record are replaced.
    say: is told what is left alone and why. clock: in seconds.
    Raises UsageError where `folder` is a file, and what the first plan raises.
    """

    def __init__(
        self,
        folder: Path,
        plan: Callable[[], Plan],
        stale: Callable[[Planned, Record], str | None],
        *,
        records: Mapping[Path, Record] | None = None,
        overwrite: bool = False,
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.plan, self.stale, self.overwrite, self.clock = folder, plan, stale, overwrite, clock
        self._records = {path: record for path, record in (records or {}).items() if record["status"] == "restored"}
        self._in_work: set[Path] = set()
        self._say_always = say
        self._said: set[str] = set()

    def started(self, photo: Planned) -> None:
        """Keep a photo from being given while it is in work."""
        self._in_work.add(photo.source)

    def done(self, outcome: Outcome) -> None:
        """Take down what became of a photo."""
        self._in_work.discard(outcome.planned.source)
        if outcome.error is None:
            self._records[absolute(outcome.planned.target)] = outcome.record

    def __iter__(self) -> Iterator[Planned | None]:
        if exists(self.folder) and not is_folder(self.folder):
            raise UsageError(f"{self.folder} is no folder to watch", "name it as a photo instead")
        seen: dict[Path, object] = {}
        taken: dict[Path, object] = {}
        first = True
        while True:
            for photo in self._photos(first):
                now = stamp(photo.source)
                if now is None or taken.get(photo.source) == now or photo.source in self._in_work:
                    continue
                if seen.get(photo.source) == now:
                    taken[photo.source] = now
                    if (wanted := self._wanted(photo)) is not None:
                        remove_left_over([wanted])
                        yield wanted
                seen[photo.source] = now
            first = False
            looked = self.clock()
            yield None
            while self.clock() - looked < PAUSE_SECONDS:
                yield None

    def _photos(self, first: bool) -> tuple[Planned, ...]:
        missing = f"waiting for {self.folder}, which is not there"
        if not is_folder(self.folder):
            self._say(missing)
            return ()
        self._said.discard(missing)  # it may go again
        try:
            plan = self.plan()
        except NoInputError:
            return ()  # nothing has arrived yet
        except OldphotoError as error:
            if first:
                raise
            self._say(str(error))
            return ()
        for note in plan.notes:
            self._say(note)
        return plan.photos

    def _wanted(self, photo: Planned) -> Planned | None:
        """The photo as it is to be restored, or as it fails; None where its output stays."""
        record = self._records.get(absolute(photo.target))
        if photo.problem is not None:
            return photo
        if record is not None and absolute(record["input"]["path"]) != absolute(photo.source):
            text = f"{record['input']['path']} and {photo.source} would both become {photo.target}"
            return replace(photo, problem=RefusedOverwriteError(text, "rename one of them"))
        if not os.path.lexists(photo.target):
            return replace(photo, replaces=False)
        if record is None:
            if not self.overwrite and _newer(photo.source, photo.target):
                advice = "--overwrite, or --resume with its manifest, restores it again"
                self._say(f"{photo.source} is newer than {photo.target}, which stays: {advice}")
            return photo if self.overwrite else None
        why = self.stale(photo, record)
        if why is not None and difference(photo.target, record["output"]) == "changed":
            self._say(f"{photo.source}: {why}; but {photo.target} was changed too, and stays")
            return None
        if why is not None:
            self._say_always(f"{photo.source} is restored again: {why}")
        return None if why is None else photo

    def _say(self, text: str) -> None:
        """Say what would be as true at the next look, once."""
        if text not in self._said:
            self._said.add(text)
            self._say_always(text)


def _newer(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.stat().st_mtime_ns > other.stat().st_mtime_ns
    return False
