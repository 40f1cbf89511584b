"""Time per megapixel and peak memory of plain translation with the compact set, against 1 megapixel in the same run.

python benchmarks/sizes.py [MEGAPIXELS ...] [-- options of `oldphoto bench`]
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> None:
    """Each size in a process of its own, so that memory is that size's."""
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sizes, options = sys.argv[1:cut] or ["1", "4", "12", "50", "100"], sys.argv[cut + 1 :]
    first = None
    for size in sizes:
        command = [
            sys.executable,
            "-m",
            "oldphoto",
            "bench",
            "--sizes",
            size,
            "--stage",
            "translation",
            "--json",
            *options,
        ]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rate, memory = row["cpu_seconds"] / (row["width"] * row["height"] / 1e6), row["peak_memory_bytes"] / 1e9
        first = first or (rate, memory)
        print(
            f"{size:>5} MP {row['way']:7} {row['seconds']:8.1f} s wall  {rate:6.2f} s CPU/MP ({rate / first[0]:.2f} x)"
            f"  {memory:5.2f} GB ({memory / first[1]:.2f} x)",
            flush=True,
        )


if __name__ == "__main__":
    main()
