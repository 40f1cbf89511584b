"""How memory is taken from the system, by its own counters."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Ten times 64 MB, one after the other in a thread as photos are: pages that the system handed out, in all.
PAGES = """
import resource, sys, threading
from oldphoto.memory import reuse_pages
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
