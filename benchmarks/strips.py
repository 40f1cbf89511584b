"""Plain translation at the published width (random weights) strip by strip, against in one piece in the same run.

    python benchmarks/strips.py [MEGAPIXELS] [MAX_MEMORY_GB] [--alone]

--alone: only strip by strip, for sizes that no machine holds in one piece.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import json, sys, time
import numpy as np, torch
from oldphoto.machine import memory
from oldphoto.models import translating
from oldphoto.bench import photo
from oldphoto.models.loading import PUBLISHED, build, placed
from oldphoto.records.manifest import peak_memory
way, megapixels, limit, target = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
memory.reuse_pages()  # as the command does
torch.manual_seed(1)
device = torch.device("cpu")
nets = [placed(build(PUBLISHED[name]).eval(), device) for name in ("old_vae", "mapping", "clean_vae")]
trio = translating.TranslationNets(*nets)
translating.MOST_WHOLE = 1 << 60 if way == "whole" else 0
pixels = photo(megapixels)[0].astype(np.uint16) * 257
wall, cpu = time.perf_counter(), time.process_time()
with torch.inference_mode():
    done = translating.translate_photo(pixels, None, trio, device, int((64 if way == "whole" else limit) * 1e9))
assert done.plan.way == way, done.plan
np.save(target, done.pixels)
facts = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
facts |= {"peak": peak_memory() / 1e9, "disk": done.plan.disk / 1e9}
print(json.dumps(facts))
"""


def main() -> None:
    """Both ways in processes of their own."""
    import numpy as np

    given = [word for word in sys.argv[1:] if word != "--alone"]
    megapixels, limit = (*given, *("1", "1.2")[len(given) :])[:2]
    ways = ("strips",) if "--alone" in sys.argv else ("whole", "strips")
    with tempfile.TemporaryDirectory() as folder:
        rows, made = {}, {}
        for way in ways:
            target = Path(folder) / f"{way}.npy"
            command = [sys.executable, "-c", RUN, way, megapixels, limit, str(target)]
            rows[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if len(ways) == 2:
                made[way] = np.load(target).astype(np.float64)
    for way, row in rows.items():
        cpu, peak = (row[key] / rows[ways[0]][key] for key in ("cpu", "peak"))
        print(
            f"{way:7} {row['wall']:7.1f} s wall  {row['cpu']:7.1f} s CPU ({cpu:.2f} x)  "
            f"{row['peak']:.2f} GB ({peak:.2f} x)  {row['disk']:.2f} GB on disk"
        )
    if len(ways) == 2:
        apart = np.abs(made["whole"] - made["strips"]).max() / 257
        print(f"largest difference: {apart:.4f} levels of 255")


if __name__ == "__main__":
    main()
