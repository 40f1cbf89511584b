"""Photos in work at once: threads of their own, their share of the memory, their part of the cores."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
import torch

from oldphoto.machine import memory, threads, workers
from oldphoto.machine.memory import Line
from oldphoto.machine.workers import Flight

GB = 10**9


def landed(calls: Flight[str], count: int) -> list[str]:
    results: list[str] = []
    while len(results) < count:
        if (result := calls.next()) is not None:
            results.append(result)
    return results


# ---- threads of their own ----


def test_calls_run_at_once_and_land_where_they_were_started() -> None:
    together = threading.Barrier(3)
    idents: set[int] = set()

    def call(name: str) -> str:
        idents.add(threading.get_ident())
        together.wait(30)
        return name

    with Flight[str]() as calls:
        for names in ("abc", "def"):  # the second time in the threads of the first
            for name in names:
                calls.start(lambda name=name: call(name))  # type: ignore[misc]
            assert sorted(landed(calls, 3)) == list(names)
        assert calls.busy == 0
        assert calls.next() is None
    assert len(idents) == 3
    assert threading.get_ident() not in idents


def test_what_a_call_raises_is_raised_and_costs_no_other_call() -> None:
    def fail() -> str:
        raise ValueError("surprise")

    with Flight[str]() as calls:
        calls.start(fail)
        with pytest.raises(ValueError, match="surprise"):
            landed(calls, 1)
        calls.start(lambda: "good")
        assert landed(calls, 1) == ["good"]


def test_what_is_in_the_air_is_interrupted() -> None:
    ended: list[str] = []
    begun = threading.Event()

    def long() -> str:
        try:
            begun.set()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            ended.append("interrupted")
            raise

    calls = Flight[str]()
    calls.start(long)
    calls.start(lambda: "done")
    assert begun.wait(30)
    started = time.monotonic()
    while calls._landed.empty():
        time.sleep(0.01)
    assert calls.stop() == ["done"]
    assert calls.stop() == []
    assert ended == ["interrupted"]
    assert time.monotonic() - started < workers.PATIENCE_SECONDS


def test_what_cannot_be_interrupted_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 0.2)
    never, begun = threading.Event(), threading.Event()

    def deaf() -> str:
        begun.set()
        never.wait()
        return "too late"

    with Flight[str]() as calls:
        calls.start(deaf)
        assert begun.wait(30)
        started = time.monotonic()
    assert time.monotonic() - started < 10
    never.set()


# ---- their share of the memory ----


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the process holds, and what is free, as the tests like it."""
    facts = {"resident": 1 * GB, "available": 8 * GB}
    monkeypatch.setattr(memory, "resident", lambda: facts["resident"])
    monkeypatch.setattr(memory, "available", lambda: facts["available"])
    return facts


class Photo:
    """Asks for memory in a thread of its own."""

    def __init__(self, line: Line, need: int, most: int) -> None:
        self.fit = 0
        self.admitted, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.wait, args=(line, need, most), daemon=True)
        self.thread.start()

    def wait(self, line: Line, need: int, most: int) -> None:
        with line.admitted(need, most) as self.fit:
            self.admitted.set()
            self.leave.wait(60)

    def end(self) -> None:
        self.leave.set()
        self.thread.join(60)


def test_a_photo_that_is_written_is_in_work_meanwhile(process: dict[str, int]) -> None:
    line = Line()
    with line.writing(3 * GB, 5 * GB):
        reading = Photo(line, 2 * GB, 5 * GB)
        assert not reading.admitted.wait(0.3)
    assert reading.admitted.wait(30)
    # And it waits for those, but not in the line: whoever stands there may wait for what it holds.
    waiting = Photo(line, 3 * GB, 5 * GB)
    with line.writing(1 * GB, 5 * GB):
        assert not waiting.admitted.is_set()
    reading.end()
    assert waiting.admitted.wait(30)
    waiting.end()


def test_photos_are_in_work_as_far_as_memory_allows(process: dict[str, int]) -> None:
    line = Line()
    photos = [Photo(line, 2 * GB, 5 * GB) for _ in range(2)]
    assert all(photo.admitted.wait(30) for photo in photos)
    assert [photo.fit for photo in photos] == [2, 2]
    third = Photo(line, 1 * GB, 5 * GB)
    assert not third.admitted.wait(0.5)
    photos[0].end()
    assert third.admitted.wait(30)
    photos[1].end()
    third.end()


def test_a_photo_that_fits_beside_no_other_is_admitted_alone(process: dict[str, int]) -> None:
    line = Line()
    large = Photo(line, 9 * GB, 5 * GB)
    assert large.admitted.wait(30)
    assert large.fit == 1
    small = Photo(line, 1, 5 * GB)
    assert not small.admitted.wait(0.5)
    large.end()
    assert small.admitted.wait(30)
    small.end()


def test_a_large_photo_is_not_overtaken_for_ever(process: dict[str, int]) -> None:
    line = Line()
    first = Photo(line, 2 * GB, 5 * GB)
    assert first.admitted.wait(30)
    large = Photo(line, 4 * GB, 5 * GB)
    assert not large.admitted.wait(0.3)
    small = Photo(line, 1 * GB, 5 * GB)  # would fit
    assert not small.admitted.wait(0.5)
    first.end()
    assert large.admitted.wait(30)
    large.end()
    assert small.admitted.wait(30)
    small.end()


class Interrupted(BaseException):
    """Falls where it is told to."""


@pytest.mark.parametrize("lost", ["need", "head"])
def test_an_interrupt_in_the_very_line_that_gives_a_place_up_leaves_nothing_behind(
    lost: str, process: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupted thread lives on, as a program does that uses the Python API."""

    class Falls(dict[object, int]):
        def pop(self, *_: object) -> int:
            raise Interrupted

        remove = pop

    line = Line()
    if lost == "need":
        with pytest.raises(Interrupted), line.admitted(9 * GB, 5 * GB):
            monkeypatch.setattr(line._needs, "pop" if hasattr(line._needs, "pop") else "remove", Falls().pop)
    else:
        with pytest.raises(Interrupted), line.reading():
            monkeypatch.setattr(line, "_step_down", Falls().pop)
    monkeypatch.undo()
    monkeypatch.setattr(memory, "resident", lambda: GB)
    gc.collect()
    other = Photo(line, 1 * GB, 5 * GB)
    assert other.admitted.wait(5)
    other.end()


def test_only_one_photo_waits_decoded() -> None:
    line = Line()
    decoded: list[int] = []
    go = threading.Event()

    def read(number: int) -> None:
        with line.reading():
            decoded.append(number)
            go.wait(60)
            with line.admitted(1, 10 * GB):
                pass

    readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(3)]
    for reader in readers:
        reader.start()
    time.sleep(0.5)
    assert len(decoded) == 1
    go.set()
    for reader in readers:
        reader.join(60)
    assert sorted(decoded) == [0, 1, 2]


def test_the_limit_of_a_photo_does_not_depend_on_the_others(
    process: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line()
    monkeypatch.setattr(memory, "line", line)
    alone = memory.limit(None)
    assert alone == 5 * GB
    other = Photo(line, 3 * GB, alone)
    assert other.admitted.wait(30)
    process.update(resident=3 * GB, available=6 * GB)  # the other has taken 2 of its 3 GB
    assert (memory.limit(None), line.held()) == (alone, 1 * GB)
    process.update(resident=5 * GB, available=4 * GB)  # 4 GB: 1 is not the other's
    assert line.held() == 2 * GB
    other.end()
    assert line.held() == 5 * GB


# ---- their part of the cores ----


@pytest.fixture
def four(set_threads: Callable[[int], None]) -> None:
    set_threads(4)


def in_a_thread(call: Callable[[], list[int]]) -> list[int]:
    results: list[list[int]] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(("at_once", "expected"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_threads_are_shared_out(four: None, at_once: int, expected: int) -> None:
    def call() -> list[int]:
        threads.share(4, at_once)
        return [torch.get_num_threads()]

    assert in_a_thread(call) == [expected]
    assert torch.get_num_threads() == 4


def test_a_photo_that_has_the_memory_to_itself_has_the_cores_too(four: None) -> None:
    def call() -> list[int]:
        threads.share(4, 4)
        counts = [torch.get_num_threads()]
        for fit in (1, 2, 8):
            with threads.no_more_at_once(fit):
                counts.append(torch.get_num_threads())
        return [*counts, torch.get_num_threads()]

    assert in_a_thread(call) == [1, 4, 2, 1, 1]


def test_a_caller_that_does_not_share_keeps_its_threads(four: None) -> None:
    torch.set_num_threads(3)
    with threads.no_more_at_once(1):
        assert torch.get_num_threads() == 3
    assert threads.places(None) == 3
    assert threads.places(7) == 7
