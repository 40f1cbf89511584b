"""The commands that read manifests: `verify`, `premis` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from oldphoto.cli.flags import AsJson
from oldphoto.cli.terminal import print_json, put, put_bytes, shown, stderr
from oldphoto.errors import ExitCode
from oldphoto.records import manifest


def verify(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Hash inputs and outputs again and say what has changed since they were restored; exit code 4 if anything has."""
    photos, changed = 0, 0
    for record, changes in manifest.verify(record for path in manifests for record in manifest.read(path)):
        photos += 1
        changed += bool(changes)
        if as_json:
            paths = {role: facts["path"] for role in manifest.ROLES if (facts := record[role]) is not None}
            print_json(paths | {"changes": {change.role: change.what for change in changes}})
        else:
            for change in changes:
                put(f"{change.what}  {change.role.replace('_', ' ')}  {shown(change.path)}")
    if not as_json:
        put(f"{photos} photos verified, {changed} changed")
    if changed:
        raise typer.Exit(ExitCode.SOME_FAILED)


def export_premis(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
) -> None:
    """Write a manifest as PREMIS 3 XML to stdout: files as objects, restorations as events."""
    from oldphoto.records.premis import premis

    document = premis(record for path in manifests for record in manifest.read(path))
    put_bytes(lambda stdout: stdout.write(document))


def make_report(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
) -> None:
    """Make a page of before and after from a manifest and the files it names; nothing is restored again."""
    from oldphoto.records.report import write_report

    count = write_report(output, (record for path in manifests for record in manifest.read(path)), overwrite=overwrite)
    stderr().print(Text(f"{count} photo{'s'[: count != 1]} in {shown(output)}"))
