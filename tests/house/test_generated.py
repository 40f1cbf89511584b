"""Pages and tables that are made from the code are those that the code makes."""

from __future__ import annotations

import re
from pathlib import Path

from oldphoto.cli.flags import name_of
from oldphoto.options import Options, declared
from oldphoto.runs.request import RunRequest
from tools import generate

ROOT = Path(__file__).resolve().parents[2]


def test_the_reference_is_not_stale() -> None:
    assert generate.stale() == [], "python -m tools.generate"


def test_a_stale_page_is_told(tmp_path: Path) -> None:
    for name, make in generate.PAGES.items():
        (tmp_path / name).write_text(generate.MADE + make(), encoding="utf-8")
    (tmp_path / "exit-codes.md").write_text("0 is done\n", encoding="utf-8")
    (tmp_path / "python.md").unlink()
    assert generate.stale(tmp_path) == ["exit-codes.md", "python.md"]


def test_every_option_of_restore_is_in_the_reference() -> None:
    sources = [*(ROOT / "oldphoto" / "cli").glob("*.py"), ROOT / "oldphoto" / "runs" / "request.py"]
    named = {name for path in sources for name in re.findall(r'"(--[a-z0-9-]+)', path.read_text(encoding="utf-8"))}
    named |= {f"--{name_of(one).replace('_', '-')}" for one in (*declared(Options), *declared(RunRequest))}
    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert {name for name in named if f"`{name}`" not in page} <= {"--version"}


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert len(links) > 20
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]
