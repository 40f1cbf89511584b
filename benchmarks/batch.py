"""A batch in one process, against one process per photo in the same run; compact set, no faces.

python benchmarks/batch.py [PHOTOS] [MEGAPIXELS]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """One by one first, on a fifth of the photos, since all of them would only take longer."""
    from PIL import Image

    from oldphoto.bench import photo

    count, megapixels = (*sys.argv[1:], *("50", "1")[len(sys.argv) - 1 :])[:2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        picture = Image.fromarray(photo(float(megapixels))[0])
        for number in range(int(count)):
            picture.save(folder / "in" / f"{number:03}.jpg", quality=92)
        command = [sys.executable, "-m", "oldphoto", "restore", "--model", "compact", "--no-faces", "--quiet"]
        photos = sorted((folder / "in").iterdir())
        some = photos[: max(1, len(photos) // 5)]
        started = time.perf_counter()
        for path in some:
            subprocess.run([*command, str(path), "-o", str(folder / "single" / path.name)], check=True)
        single = (time.perf_counter() - started) / len(some)
        started = time.perf_counter()
        subprocess.run([*command, str(folder / "in"), "-o", str(folder / "batch")], check=True)
        batch = (time.perf_counter() - started) / len(photos)
    print(
        f"one process per photo {single:6.2f} s a photo; one batch of {count} {batch:6.2f} s ({single / batch:.2f} x)"
    )


if __name__ == "__main__":
    main()
