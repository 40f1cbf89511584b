"""One whole `oldphoto restore` with the published set, against the same networks done in the plain way of a chain.

    python benchmarks/whole_run.py CHECKPOINTS PHOTO WIDTHxHEIGHT [ROUNDS [COPIES]]

CHECKPOINTS: a folder in the published layout; stand-ins with random values serve, since speed does not depend on them.
PHOTO is fitted to the size. COPIES of it go through one run of ours, which is shared out among them; the chain starts
again for each. The chain stands in for the published code, which is not run here: four processes that each import torch
and read pickles, pass files on, look for faces twice, and do every layer as torch does it. It lacks what that code does
besides: spectral norm at each call, warps of the whole photo, histograms in Python.
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
from oldphoto import cli, weights
lock = Path(sys.argv.pop(1))
weights.lock_path = lambda: lock
cli.main()
"""
CHAIN = """
import sys
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from oldphoto import blending, faces, weights
from oldphoto.loading import load_published
from oldphoto.models import blocks, mapping, spade, vae, winograd
from oldphoto.tensors import to_pixels, to_tensor
from oldphoto.translation import TranslationNets, translate_whole
stage, lock, photo, folder = sys.argv[1], *map(Path, sys.argv[2:])
paths = {file.net: weights.cached(file) for file in weights.read_lock(lock) if file.set == "published"}
winograd.LEAST_CHANNELS = 1 << 30
for module in (blocks, mapping, vae):
    module.normalise = lambda x, norm: F.instance_norm(x, eps=blocks.EPSILON)
def steered(self, x, face):
    steer = F.relu(self.shared(face))
    return self.norm(x) * (1.0 + self.gamma(steer)) + self.beta(steer)
spade.Spade.forward = steered
def read(path):
    return np.asarray(Image.open(path).convert("RGB"))
def net(name):
    return load_published(name, paths[name])
def found(pixels):
    frame, landmarks = np.eye(3), faces.Landmarks(paths["landmarks_68"])
    seen = faces.search(pixels, 0.0, frame)
    return faces.cut_faces(pixels, seen, landmarks, 256)
with torch.inference_mode():
    if stage == "translation":
        nets = TranslationNets(net("old_vae"), net("mapping"), net("clean_vae"))
        made = translate_whole(to_tensor(read(photo)), None, nets)
        Image.fromarray(to_pixels(made, np.uint8)).save(folder / "restored.png")
    elif stage == "faces":
        for face in found(read(folder / "restored.png")):
            Image.fromarray(face.before).save(folder / f"face{face.number}.png")
    elif stage == "enhancement":
        crops = sorted(folder.glob("face*.png"))
        made = net("face_generator_256")(torch.cat([to_tensor(read(path)) for path in crops]))
        for path, one in zip(crops, made):
            Image.fromarray(to_pixels(one[None], np.uint8)).save(path)
    else:
        restored = read(folder / "restored.png")
        some = [faces.replace(face, after=read(folder / f"face{face.number}.png").astype(np.float32))
                for face in found(restored)]
        print(len(some), "faces", file=sys.stderr)
        Image.fromarray(blending.blend(restored, some, blending.REFERENCE)).save(folder / "final.png")
"""


def main() -> None:
    """A first run of ours, which converts the checkpoints, is left out; then the two ways in turn."""
    from PIL import Image, ImageOps

    from oldphoto.weights import _hash, lock_path, read_lock

    checkpoints = Path(sys.argv[1])
    width, height = (int(side) for side in sys.argv[3].split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo, lock, batch = folder / "photo.png", folder / "weights.lock", folder / "batch"
        ImageOps.fit(Image.open(sys.argv[2]).convert("RGB"), (width, height)).save(photo)
        rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 2
        copies = int(sys.argv[5]) if len(sys.argv) > 5 else 1
        batch.mkdir()
        for number in range(copies):
            shutil.copy(photo, batch / f"{number}.png")
        text = lock_path().read_text(encoding="utf-8")
        for file in read_lock():
            if file.set == "published" and (checkpoints / file.path).is_file():
                text = text.replace(file.sha256, _hash(checkpoints / file.path))
        lock.write_text(text, encoding="utf-8")
        environment = {**os.environ, "OLDPHOTO_WEIGHTS": str(checkpoints), "HF_HOME": name, "HF_HUB_OFFLINE": "1"}

        def watched(*command: str) -> tuple[float, float, float]:
            """Seconds, CPU seconds, and peak memory in GB of one process."""
            began = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-c", *command], env=environment)
            _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{command[1:]} failed")
            return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9

        def ours(photos: Path) -> tuple[float, float, float]:
            command = (OURS, str(lock), "restore", str(photos), "-o", f"{folder / 'ours'}{os.sep}", "--overwrite")
            return watched(*command, "--model", "published")

        ours(photo)
        for _ in range(rounds):
            seconds, cpu, peak = ours(batch)
            seconds, cpu = seconds / copies, cpu / copies
            print(f"oldphoto    {seconds:6.1f} s {cpu:6.1f} s CPU  {peak:.2f} GB", flush=True)
            chain, chain_cpu = 0.0, 0.0
            for stage in ("translation", "faces", "enhancement", "blending"):
                one, one_cpu, held = watched(CHAIN, stage, str(lock), str(photo), name)
                chain, chain_cpu = chain + one, chain_cpu + one_cpu
                print(f"{stage:11} {one:6.1f} s {one_cpu:6.1f} s CPU  {held:.2f} GB", flush=True)
            ratios = f"{chain / seconds:.2f} x, CPU {chain_cpu / cpu:.2f} x"
            print(f"chain       {chain:6.1f} s {chain_cpu:6.1f} s CPU: {ratios}", flush=True)


if __name__ == "__main__":
    main()
