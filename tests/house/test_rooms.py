"""A room holds 60 to 400 lines, a folder some twelve rooms; what is smaller or larger has its reason here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "oldphoto"
FEWEST, MOST, ROOMS = 60, 400, 13

SMALL = {
    "__main__.py": "is ready for signals before anything else is imported",
    "arrays.py": "has names that every floor shares, and imports nothing",
    "cli/networks.py": "is what tests put a stand-in for: all that fetches and loads",
    "machine/threads.py": "is asked by every floor above, for one thing",
    "models/srvgg.py": "is a network of one page",
    "models/tensors.py": "is where arrays become tensors, and nothing else",
    "stages/changes.py": "is shared by stages that may not import one another",
    "stages/translation.py": "is a stage; the work is done in models/translating.py",
    "training/pairs.py": "is the command `degrade`",
    "training/perceptual.py": "is the measure that trainings and benchmarks share",
}
# Lines that these may have, and why they are not cut.
LARGE = {
    "files/image.py": (480, "is the only door to reading and writing; each format has a room of its own below it"),
    "files/tiff.py": (470, "is one format, whose tags are told from one another in one place"),
    "files/tiff_blocks.py": (480, "is one format's ways to store samples, which share their tables"),
    "records/manifest.py": (500, "has the types of a record beside what writes and checks them"),
    "records/report.py": (410, "fills one page; its style and script are files of their own"),
    "runs/batch.py": (660, "is still to be cut: the loop, one photo, resuming, and the building of records"),
    "training/damage.py": (480, "teaches one network: its samples, its loss and its score are read together"),
    "stages/filling.py": (480, "is one algorithm, of which no part is of use elsewhere"),
}
CROWDED = {
    "files": (16, "has one room for each family of formats"),
    "models": (24, "has one room for each network, named as the network, and six that load and run them"),
    "training": (26, "has one room for each stage of training, named as what it teaches, over what they share"),
}


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def rooms() -> dict[str, int]:
    return {
        path.relative_to(PACKAGE).as_posix(): lines(path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def test_a_room_that_is_small_or_large_has_a_reason() -> None:
    small = {name for name, count in rooms().items() if count < FEWEST}
    large = {name: count for name, count in rooms().items() if count > MOST}
    assert small <= SMALL.keys(), "give it more to do, or the reason"
    assert large.keys() <= LARGE.keys(), "cut it, or give the reason"
    assert not {name: count for name, count in large.items() if count > LARGE[name][0]}, "cut it"


def test_a_folder_that_is_crowded_has_a_reason() -> None:
    counts = Counter(str(Path(name).parent) for name in rooms())
    crowded = {folder: count for folder, count in counts.items() if count > ROOMS}
    assert crowded.keys() <= CROWDED.keys(), "give it a folder, or the reason"
    assert not {folder: count for folder, count in crowded.items() if count > CROWDED[folder][0]}, "give it a folder"


def test_what_a_folder_says_of_itself_is_no_room() -> None:
    """An __init__ names what is in the folder; code lies in rooms."""
    assert not {path: lines(path) for path in PACKAGE.rglob("__init__.py") if lines(path) > 130}
