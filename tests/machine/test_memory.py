"""How memory is taken from the system, by its own counters."""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys

import pytest

from oldphoto.machine import memory

# Ten times 64 MB, one after the other in a thread as photos are: pages that the system handed out, in all.
PAGES = """
import resource, sys, threading
from oldphoto.machine.memory import reuse_pages
if sys.argv[1] == "reuse":
    reuse_pages()
def work():
    for _ in range(10):
        b'x' * 64_000_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_large_arrays_take_the_pages_that_earlier_ones_left() -> None:
    def pages(how: str, **settings: str) -> int:
        plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
        command = [sys.executable, "-c", PAGES, how]
        return int(subprocess.run(command, env=plain | settings, capture_output=True, text=True, check=True).stdout)

    each_anew = pages("as ever")
    assert pages("reuse") < each_anew / 4
    assert pages("reuse", MALLOC_ARENA_MAX="4") > each_anew / 2  # the user's own settings stand


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
@pytest.mark.parametrize(("said", "given_back"), [(500_000_000, 0), (300_000_000, 200_000_000)])
def test_room_is_made_only_where_it_is_short(said: int, given_back: int) -> None:
    code = f"""
from oldphoto.machine.memory import line, resident, reuse_pages
reuse_pages()
with line.admitted({said}, 8_000_000_000):
    b'x' * 200_000_000
    before = resident()
    line.make_room(200_000_000)
    print(before - resident())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == pytest.approx(given_back, abs=20_000_000)


def test_pages_go_back_when_nobody_refers_to_them() -> None:
    size, before = 64 << 20, memory.resident()
    held = memory.pages(size)
    held[:: mmap.PAGESIZE] = b"x" * (size // mmap.PAGESIZE)
    assert memory.resident() > before + size * 0.9
    del held
    assert memory.resident() < before + size * 0.5


def test_pages_that_are_not_there() -> None:
    with pytest.raises(MemoryError):
        memory.pages(1 << 60)
