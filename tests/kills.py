"""Kill runs at random moments, with every option that writes a file, and count what is lost: `python -m tests.kills`.

A run is killed again and again until a folder of photos is done, then the next folder is begun. Most kills are SIGKILL,
some SIGTERM and SIGINT. After each it is counted:

    lost        outputs without a line, or that are not what their line says; files beside an output without its line
    refused     runs that would not go on
    twice       outputs that were done and were made again
    left        files that a folder which is done should not have
    changed     inputs that are no longer what they were

Networks are stood in for by a negative: what is killed is the command, from its first line to its last. Processes are
forked from this one, so that a kill takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from oldphoto.__main__ import main as main_of_command
from oldphoto.cli import networks
from oldphoto.machine.surroundings import end_as_ctrl_c
from oldphoto.records import manifest
from oldphoto.records.manifest import Setting, hash_file
from oldphoto.runs import batch
from oldphoto.runs.request import RunRequest
from oldphoto.weights import WeightSet
from tests.runs.test_resume import draw, with_all

PHOTOS = 6
MOST_RUNS = 60  # for one folder; more mean that it makes no headway


def restore(photo: Any, mask: Any) -> Any:
    """Stands in for the networks, and takes a moment."""
    time.sleep(0.02)
    return with_all(photo, mask)


def load(weight_set: WeightSet, request: RunRequest, tell: object = None) -> batch.Work:
    """Stands in for networks.load_models."""
    signed = request.c2pa is not None
    setting = Setting(
        request.options,
        weight_set.name,
        weight_set.hashes,
        request.device,
        request.precision,
        provenance=request.provenance,
        signed=signed,
    )
    return batch.Work(restore, setting, places=2)


def arguments(folder: Path) -> list[str]:
    """The command with every option that writes a file."""
    line = ["restore", folder / "in", "-o", folder / "out", "--model", "compact", "--with-scratch"]
    line += ["--resume", folder / "out/run.jsonl", "--report", folder / "page.html", "--compare"]
    return [*map(str, line), "--save-mask", str(folder / "masks"), "--save-faces", str(folder / "faces"), "-j", "2"]


def start(folder: Path) -> int:
    """Start the command; the number of its process. What it says goes to said.txt."""
    ours = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ours)  # until the command begins
    process = os.fork()
    if process:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        return process
    code = 99
    try:
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["oldphoto", *arguments(folder)]
        end_as_ctrl_c()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)
        main_of_command()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def lost(folder: Path) -> list[str]:
    """Files with a name of their own that the manifest does not know, or knows otherwise."""
    log = folder / "out/run.jsonl"
    records = manifest.last_lines(manifest.read(log)) if log.exists() else {}
    known = {path.name for path, record in records.items() if record["status"] == "restored"}
    wrong = [
        str(path)
        for path in (folder / "out").glob("[!.]*.png")
        if path.name not in known or hash_file(path) != records[path]["output"]["sha256"]
    ]
    beside = [*(folder / "out").glob("[!.]*.jpg"), *(folder / "faces").glob("[!.]*"), *(folder / "masks").glob("[!.]*")]
    return wrong + [str(path) for path in beside if f"{path.name.partition('.')[0]}.png" not in known]


def whole() -> set[str]:
    """What a folder that is done holds."""
    names = [f"{number}.png" for number in range(PHOTOS)]
    crops = [f"faces/{name}.face1.{side}.png" for name in names for side in ("before", "after")]
    files = [f"{place}/{name}" for place in ("in", "out", "masks") for name in names]
    return {
        *crops,
        *files,
        *(f"out/{name}.before-after.jpg" for name in names),
        "out/run.jsonl",
        "page.html",
        "said.txt",
    }


def kill_until_done(folder: Path, chance: random.Random, seconds: float, counts: Counter[str], most: int) -> None:
    """Kill runs on one folder until none is left to kill; the counts go up."""
    for number in range(PHOTOS):
        draw(folder / f"in/{number}.png", colour=number)
    inputs = {path: hash_file(path) for path in (folder / "in").iterdir()}
    done: dict[Path, tuple[int, int]] = {}
    for _ in range(MOST_RUNS):
        process = start(folder)
        killing = counts["kills"] < most
        if killing:
            time.sleep(chance.uniform(0.0, seconds))
            number = chance.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], [6, 1, 1])[0]
            os.kill(process, number)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        counts["kills"] += code in (-signal.SIGKILL, 130)
        said = (folder / "said.txt").read_text() if (folder / "said.txt").exists() else ""
        if code not in (-signal.SIGKILL, 130, 0) or "Traceback" in said:
            counts["refused"] += 1
            print(f"exit code {code}: {said}")
        for name in lost(folder):
            counts["lost"] += 1
            print("lost:", name)
        there = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (folder / "out").glob("[!.]*.png")}
        for path, facts in done.items():
            if there.get(path) != facts:
                counts["twice"] += 1
                print("twice:", path, said)
        done = there
        if code == 0:
            break
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name in files ^ whole():
        counts["left"] += 1
        print("left or missing:", name)
    counts["changed"] += sum(hash_file(path) != before for path, before in inputs.items())
    counts["folders"] += 1


def main() -> None:
    """Kill as many runs as are asked for; exit code 1 if anything was lost, refused, left or changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    networks.load_models = load
    chance, counts = random.Random(chosen.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        kill_until_done(Path(folder), chance, 0.0, counts, 0)  # a run that nobody kills tells how long it takes
        seconds = time.perf_counter() - began
        print(f"a whole run takes {seconds:.2f} s")
        while counts["kills"] < chosen.count:
            shutil.rmtree(folder)
            Path(folder).mkdir()
            kill_until_done(Path(folder), chance, seconds, counts, chosen.count)
    named = ("kills", "folders", "lost", "refused", "twice", "left", "changed")
    print(", ".join(f"{counts[name]} {name}" for name in named))
    raise SystemExit(any(counts[name] for name in named[2:]))


if __name__ == "__main__":
    main()
