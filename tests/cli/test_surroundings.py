"""What starts the command may hang up, end it, close its streams or stop reading: the photos are done all the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs.test_resume import COMMAND, NAMES, draw, files_below

TOP = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        draw(tmp_path / "in" / name)
    return tmp_path


def start(folder: Path, *more: object, wait: int = 0, **streams: Any) -> subprocess.Popen[str]:
    """The command, without networks, on the four photos; it says "ready" and sleeps at the one of that number."""
    arguments = ("restore", folder / "in", "-o", folder / "out", "--model", "compact", *more)
    return command(COMMAND, wait, *arguments, **streams)


def command(code: str, *arguments: object, **streams: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", **streams.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=TOP, text=True, env=environment, **streams
    )


MAIN = "from oldphoto.__main__ import main; main()"

# ---- who is told ----


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves_ends_no_batch(folder: Path, stream: str) -> None:
    with start(folder, "--json", "-v") as run:
        told = getattr(run, stream)
        told.readline()
        told.close()
        other = run.stdout if stream == "stderr" else run.stderr
        assert other is not None
        said = other.read()
        assert run.wait(60) == 0
    assert files_below(folder / "out") == list(NAMES)
    assert "Traceback" not in said
    assert "4 restored" in said or said.count('"restored"') == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
@pytest.mark.parametrize(("stream", "code"), [("stdout", 5), ("stderr", 0)])
def test_a_full_disk_behind_the_log_ends_no_batch(folder: Path, stream: str, code: int) -> None:
    with Path("/dev/full").open("w") as full:
        streams: dict[str, Any] = {stream: full}
        run = start(folder, "--json", "-v", **streams)
    with run:
        told, said = run.communicate(timeout=60)
    assert run.returncode == code
    assert files_below(folder / "out") == list(NAMES)
    if stream == "stdout":
        assert said.splitlines()[-1].endswith("cannot write to stdout: No space left on device")
        assert "Traceback" not in said
    else:
        assert told.count('"restored"') == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_results_that_cannot_be_written_are_one_line() -> None:
    with Path("/dev/full").open("w") as full, command(MAIN, "weights", "list", stdout=full) as run:
        _, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (5, "error: cannot write to stdout: No space left on device\n")
    with command(MAIN, "weights", "list") as run:
        assert run.stdout is not None
        assert run.stderr is not None
        run.stdout.close()
        assert run.stderr.read() == ""
        assert run.wait(60) == 5


def test_names_that_the_encoding_lacks_are_shown_with_escapes(folder: Path) -> None:
    draw(folder / "in/祖母.png")
    with start(folder, "--dry-run", env={"PYTHONIOENCODING": "cp1252"}) as run:
        told, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (0, "")
    assert f"{folder}/in/\\u7956\\u6bcd.png -> " in told
    assert len(told.splitlines()) == 5


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("<&-", "- -o {folder}/x.png"), (">&-", "{folder}/in/a.png -o -"), ("<&-", "--from0 -")],
)
def test_streams_that_are_closed(folder: Path, closed: str, arguments: str) -> None:
    line = f'exec {sys.executable} -c "{MAIN}" restore {arguments.format(folder=folder)} {closed}'
    done = subprocess.run(["sh", "-c", line], cwd=TOP, input=b"", capture_output=True, timeout=60)
    assert done.returncode == 5
    assert b"it is closed" in done.stderr
    assert b"Traceback" not in done.stderr


# ---- who ends it ----


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_a_run_as_ctrl_c_does(folder: Path, name: str) -> None:
    with start(folder, "--manifest", folder / "run.jsonl", "-j", 1, wait=2) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(getattr(signal, name))
        time.sleep(0.1)
        run.send_signal(getattr(signal, name))  # to the process, and to its group
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines()[-1] == "1 restored, interrupted with 3 to go"
    assert files_below(folder / "out") == ["a.png"]


# A photo in work that no interrupt ends.
DEAF = """
def deaf(told=[]):
    while True:
        try:
            if not told:
                told.append(True)
                print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    patient = "from oldphoto.machine import workers\nworkers.PATIENCE_SECONDS = 60.0\n"
    code = COMMAND.replace("cli.main()", f"{patient}cli.main()")
    code = code.replace('print("ready", flush=True)', "deaf()").replace("def restore", f"{DEAF}\ndef restore")
    with command(code, 2, "restore", folder / "in", "-o", folder / "out", "--model", "compact") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        time.sleep(1.2)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 130
    assert said.splitlines()[-1] == "interrupted again: leaving at once"
    assert [name for name in files_below(folder / "out") if not name.startswith(".")] == ["a.png"]


def test_a_signal_that_is_ignored_stays_so(folder: Path) -> None:
    """As under nohup."""
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + COMMAND.replace(
        "time.sleep(60)", "time.sleep(1)"
    )
    with command(code, 2, "restore", folder / "in", "-o", folder / "out", "--model", "compact", "-j", 1) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGHUP)
        run.communicate(timeout=60)
    assert run.returncode == 0


# Sends a signal when a module is imported.
AT_IMPORT = """
import os, signal, sys

class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(sys.argv[2]))

signal.signal(signal.SIGINT, signal.default_int_handler)
from oldphoto.__main__ import main
sys.meta_path.insert(0, Signal())
main()
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [("oldphoto.cli", signal.SIGINT), ("rich.progress", signal.SIGTERM), ("oldphoto.files.image", signal.SIGINT)],
)
def test_a_signal_in_the_first_second_is_no_traceback(folder: Path, module: str, number: int) -> None:
    code = AT_IMPORT.replace("main()\n", "sys.argv[1:] = sys.argv[3:]\nmain()\n").replace("sys.argv[1]:", "WHEN:")
    code = f"WHEN, NUMBER = {module!r}, {int(number)}\n" + code.replace("int(sys.argv[2])", "NUMBER")
    with command(code, 0, 0, "restore", folder / "in", "-o", folder / "out", "--dry-run") as run:
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said in ("", "interrupted\n")


# ---- what comes on stdin ----


def piped(folder: Path, code: str, *arguments: object, **streams: Any) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    arguments = (0, "restore", "-", "-o", folder / "x.png", "--model", "compact", *arguments)
    return command(code, *arguments, env={"TMPDIR": str(folder / "tmp")}, **streams)


@pytest.mark.parametrize("why", ["limit", "disk", "full"])
def test_stdin_without_end_does_not_fill_the_disk(folder: Path, why: str) -> None:
    limits = {
        "limit": "from oldphoto.cli import pipes\npipes.LARGEST_STDIN = 3 << 20\n",
        "disk": "import shutil\nshutil.disk_usage = lambda path: type('Usage', (), {'free': 6 << 20})\n",
        "full": "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n",
    }
    code = COMMAND.replace("cli.main()", limits[why] + "cli.main()")
    with Path("/dev/zero").open("rb") as endless, piped(folder, code, stdin=endless) as run:
        _, said = run.communicate(timeout=60)
    assert run.returncode == 5
    assert said.startswith(("error: there is more on stdin", "error: cannot keep the photo from stdin"))
    assert "Traceback" not in said
    assert files_below(folder / "tmp") == []


def test_a_photo_from_stdin_is_not_left_behind(folder: Path) -> None:
    with (
        (folder / "in/a.png").open("rb") as photo,
        piped(folder, COMMAND.replace("wait = [], int", "wait = [], 1 + int"), stdin=photo) as run,
    ):
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        assert files_below(folder / "tmp") != []
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    assert run.returncode == 130
    assert list((folder / "tmp").iterdir()) == []
