"""Calls in threads of their own, several in the air at once; what they give lands in the thread that started them."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")

# A call that is interrupted ends at its next step in Python. What takes longer inside a library is left behind.
PATIENCE_SECONDS = 5.0
# Results are waited for a moment at a time: Ctrl-C does not reach a thread that waits for ever on every system.
MOMENT_SECONDS = 0.1
# An interrupt that fell into a place where Python drops exceptions, such as a finalizer, is repeated after so long.
REPEAT_SECONDS = 1.0


class Flight(Generic[Result]):
    """To be used as a context by one thread; leaving it interrupts what is still in the air.

    Its threads stay for the next calls, and do not keep the process from ending.
    """

    def __init__(self) -> None:
        self.busy = 0  # calls that were started and whose results were not given out
        self.stopped = False
        self._waiting: SimpleQueue[Callable[[], Result] | None] = SimpleQueue()
        self._landed: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._calling: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Flight[Result]:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, call: Callable[[], Result]) -> None:
        """Run a call in a thread that has nothing to do, or in a new one."""
        if self.busy == len(self._threads):
            self._threads.append(threading.Thread(target=self._work, name="oldphoto", daemon=True))
            self._threads[-1].start()
        self.busy += 1
        self._waiting.put(call)

    def next(self) -> Result | None:
        """Wait for the next call to end, and return what it gives; None where none ends within a moment. Raises what
        the call raised."""
        try:
            result, error = self._landed.get(timeout=MOMENT_SECONDS)
        except Empty:
            return None
        self.busy -= 1
        if error is not None:
            raise error
        return result

    def stop(self) -> list[Result]:
        """Interrupt the calls in the air, as Ctrl-C would, and wait for them; what those give that ended well.

        It is for good: nothing starts any more, and a second call gives nothing.
        """
        if self.stopped:
            return []
        self.stopped = True
        for _ in self._threads:
            self._waiting.put(None)
        started = time.monotonic()
        sent = -REPEAT_SECONDS
        while self._calling and (since := time.monotonic() - started) < PATIENCE_SECONDS:
            if since - sent >= REPEAT_SECONDS:
                sent = since
                with self._lock:
                    for thread in self._calling:
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(KeyboardInterrupt)
                        )
            time.sleep(0.01)
        results = []
        with suppress(Empty):
            while True:
                result, error = self._landed.get_nowait()
                self.busy -= 1
                if error is None and result is not None:
                    results.append(result)
        return results

    def _work(self) -> None:
        # An interrupt may come in just when its call has ended.
        with suppress(KeyboardInterrupt):
            while (call := self._waiting.get()) is not None and not self.stopped:
                with self._lock:
                    self._calling.add(threading.get_ident())
                try:
                    landed: tuple[Result | None, BaseException | None] = (call(), None)
                except BaseException as error:
                    landed = (None, error)
                finally:
                    with self._lock:
                        self._calling.discard(threading.get_ident())
                self._landed.put(landed)
                del call, landed  # the next call may be long in coming
