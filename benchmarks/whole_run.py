"""One whole `oldphoto restore` with the published set, against the published code itself on the same machine.

    python benchmarks/whole_run.py CODE PHOTO WIDTHxHEIGHT [ROUNDS [COPIES]] [-- options of `oldphoto restore`]

CODE: a clone of https://github.com/microsoft/Bringing-Old-Photos-Back-to-Life, set up as its README says, with its
checkpoints and landmark model in their places (stand-ins with random values serve: speed does not depend on them), so
that `python run.py --GPU -1` runs here. With libraries of today that takes one change: `mask = mask * 255.0` for
`mask *= 255.0` in Face_Detection/. PHOTO is fitted to the size. COPIES of it go through one run of ours, which is
shared out among them; the published code is timed on one, start-up and all, as if it were run for each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import sys
from pathlib import Path
from oldphoto import cli
from oldphoto.weights import lock as lock_of
lock = Path(sys.argv.pop(1))
lock_of.lock_path = lambda: lock
cli.main()
"""


def main() -> None:
    """A first run of ours, which converts the checkpoints, is left out; then the two in turn."""
    from PIL import Image, ImageOps

    from oldphoto.weights import lock_path, read_lock
    from oldphoto.weights.lock import hash_of

    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, options = sys.argv[1:cut], sys.argv[cut + 1 :]
    code, photo = Path(given[0]).resolve(), given[1]
    width, height = (int(side) for side in given[2].split("x"))
    rounds, copies = (int(text) for text in (given[3:] + ["2", "1"][len(given[3:]) :]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, batch, lock = folder / "one", folder / "batch", folder / "weights.lock"
        one.mkdir()
        batch.mkdir()
        ImageOps.fit(Image.open(photo).convert("RGB"), (width, height)).save(one / "0.png")
        for number in range(copies):
            shutil.copy(one / "0.png", batch / f"{number}.png")
        text = lock_path().read_text(encoding="utf-8")
        for file in read_lock():
            if file.set == "published" and (code / file.path).is_file():
                text = text.replace(file.sha256, hash_of(code / file.path))
        lock.write_text(text, encoding="utf-8")
        environment = {**os.environ, "OLDPHOTO_WEIGHTS": str(code), "HF_HOME": name, "HF_HUB_OFFLINE": "1"}

        def watched(*command: str, cwd: Path | None = None) -> tuple[float, float, float]:
            """Seconds, CPU seconds, and peak memory in GB of a command and what it starts."""
            with (folder / "log").open("w") as log:
                began = time.perf_counter()
                process = subprocess.Popen(
                    [sys.executable, *command], env=environment, cwd=cwd, stdout=log, stderr=subprocess.STDOUT
                )
                _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit((folder / "log").read_text())
            return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9

        def ours(photos: Path) -> tuple[float, float, float]:
            command = ("-c", OURS, str(lock), "restore", str(photos), "-o", f"{folder / 'ours'}{os.sep}", "--overwrite")
            return watched(*command, "--model", "published", *options)

        def theirs() -> tuple[float, float, float, int]:
            """As of a run, and the number of faces in it."""
            shutil.rmtree(folder / "theirs", ignore_errors=True)
            command = ("run.py", "--input_folder", str(one), "--output_folder", str(folder / "theirs"), "--GPU", "-1")
            taken = watched(*command, cwd=code)
            faces = len(list((folder / "theirs" / "stage_3_face_output").glob("each_img/*")))
            if not faces:  # it fails with exit code 0
                raise SystemExit(f"no face made by the published code:\n{(folder / 'log').read_text()}")
            return *taken, faces

        ours(one)
        for _ in range(rounds):
            seconds, cpu, peak = ours(batch)
            seconds, cpu = seconds / copies, cpu / copies
            print(f"oldphoto        {seconds:6.1f} s {cpu:6.1f} s CPU  {peak:.2f} GB", flush=True)
            all_seconds, all_cpu, held, faces = theirs()
            ratios = f"{all_seconds / seconds:.2f} x, CPU {all_cpu / cpu:.2f} x"
            print(
                f"published code  {all_seconds:6.1f} s {all_cpu:6.1f} s CPU  {held:.2f} GB: {ratios} ({faces} faces)",
                flush=True,
            )


if __name__ == "__main__":
    main()
