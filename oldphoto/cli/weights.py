"""The commands `weights list`, `download`, `verify`, `path`, `import` and `remove`."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oldphoto.cli.flags import AsJson
from oldphoto.cli.terminal import Downloads, megabytes, print_error, print_json, put, shown, stderr
from oldphoto.errors import ExitCode, NoInputError, UsageError, WeightsCorruptError, WeightsUnavailableError
from oldphoto.options import Options

if TYPE_CHECKING:
    from oldphoto.weights import Copy, WeightFile


weights_app = typer.Typer(no_args_is_help=True, help="See, fetch, check, import and remove weight files.")


class WeightChoice(StrEnum):
    """One set of weights, or both."""

    PUBLISHED = "published"
    COMPACT = "compact"
    ALL = "all"


class Mode(StrEnum):
    """The kind of run that weights are fetched for: plain, `--with-scratch`, large photos, or any of them."""

    PLAIN = "plain"
    SCRATCH = "scratch"
    LARGE = "large"
    ALL = "all"


Choice = Annotated[WeightChoice, typer.Option("--set", help="Which weights.")]


def choose(choice: WeightChoice) -> list[WeightFile]:
    """The files of weights.lock that are in the set chosen."""
    from oldphoto.weights import read_lock

    return [file for file in read_lock() if choice in (WeightChoice.ALL, file.set)]


def weight_facts(file: WeightFile, copy: Copy | None) -> dict[str, Any]:
    """Return the lock's facts of a file, and those of its copy on this machine, for JSON and for a table."""
    state = "absent" if copy is None else "verified" if copy.right else "wrong"
    local = {} if copy is None else {"local": str(copy.path), "place": copy.place, "found": copy.found}
    return asdict(file) | {"sources": [source.name for source in file.sources], "state": state} | local


@weights_app.command("list")
def list_weights(choice: Choice = WeightChoice.ALL, as_json: AsJson = False) -> None:
    """Every weight file: set, size, whether it is here, and its licence."""
    from oldphoto import weights
    from oldphoto.doctor import LANDMARKS_LICENCE

    rows = [weight_facts(file, next(iter(weights.copies_of(file)), None)) for file in choose(choice)]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        size = megabytes(row["bytes"])
        put(f"{row['set']:9}  {row['net']:24}  {size:>9}  {row['state']:8}  licence: {row['licence']}")
    put(LANDMARKS_LICENCE)


@weights_app.command()
def download(
    choice: Choice = WeightChoice.PUBLISHED,
    mode: Annotated[Mode, typer.Option(help="Only what `restore` needs in this mode.")] = Mode.ALL,
    as_json: AsJson = False,
) -> None:
    """Fetch weights now, verify them, and keep them for later runs without a network."""
    from oldphoto import weights
    from oldphoto.stages import needed_nets

    cases = {
        Mode.PLAIN: [(Options(), False)],
        Mode.SCRATCH: [(Options(with_scratch=True), False)],
        Mode.LARGE: [(Options(), True), (Options(with_scratch=True), True)],
    }
    every = [case for each in cases.values() for case in each] + [(Options(face_detector="cnn"), False)]
    wanted = cases.get(mode, every)
    rows = []
    with Downloads(stderr(), quiet=False) as downloads:
        for file in choose(choice):
            if any(file.net in needed_nets(file.set, options, large) for options, large in wanted):
                path = weights.obtain(file, progress=downloads.report)
                rows.append({"set": file.set, "net": file.net, "local": str(path)})
                if not as_json:
                    put(f"{file.net:24}  {shown(path)}")
    if as_json:
        print_json(rows)


@weights_app.command("verify")
def verify_weights(choice: Choice = WeightChoice.ALL, as_json: AsJson = False) -> None:
    """Hash every weight file on this machine again and say which are wrong; exit code 8 if any is."""
    from oldphoto import weights

    found = weights.verify(choose(choice))
    rows = [weight_facts(file, copy) for file, copies in found.items() for copy in copies or (None,)]
    if as_json:
        print_json(rows)
    for row in rows:
        if not as_json:
            put(f"{row['state']:8}  {row['set']:9}  {row['net']:24}  {shown(row.get('local', ''))}".rstrip())
        if row["state"] == "wrong":
            wrong = f"{row['local']} is wrong: sha256 {row['found']}, weights.lock says {row['sha256']}"
            print_error(WeightsCorruptError(wrong, "oldphoto weights remove deletes what was fetched"), stderr())
    if any(row["state"] == "wrong" for row in rows):
        raise typer.Exit(ExitCode.WEIGHTS_CORRUPT)


@weights_app.command("path")
def show_path(
    net: Annotated[str | None, typer.Argument(help="A net of `weights list`.", show_default=False)] = None,
    choice: Choice = WeightChoice.ALL,
    as_json: AsJson = False,
) -> None:
    """The folders in which weights are kept, or the path of one net's verified file."""
    from oldphoto import weights
    from oldphoto.doctor import folders

    if net is None:
        if as_json:
            print_json(folders())
        else:
            for name, folder in folders().items():
                put(f"{name:9}  {shown(folder)}")
        return
    files = [file for file in choose(choice) if file.net == net]
    if not files:
        raise UsageError(f"there is no net {net!r} in this set", "see oldphoto weights list")
    found = {file.set: path for file in files if (path := weights.cached(file)) is not None}
    if not found:
        raise WeightsUnavailableError(f"{net} is not on this machine", "run `oldphoto weights download`")
    if as_json:
        print_json([{"set": name, "net": net, "local": str(path)} for name, path in found.items()])
    else:
        for path in found.values():
            put(shown(path))


@weights_app.command("import")
def import_weights(
    path: Annotated[Path, typer.Argument(help="A folder or zip of the published files, in their own layout.")],
    as_json: AsJson = False,
) -> None:
    """Bring published weights to a machine without a network; each file is verified before it is taken."""
    from oldphoto import weights

    with Downloads(stderr(), quiet=as_json) as downloads:
        rows = weights.import_archive(path, progress=downloads.report)
    if as_json:
        print_json(
            [
                {"member": row.member, "outcome": row.outcome, "net": row.file and row.file.net, "detail": row.detail}
                for row in rows
            ]
        )
    for row in rows:
        if not as_json and row.outcome != "unknown":
            put(f"{row.outcome:8}  {shown(row.member)}  {shown(row.detail)}".rstrip())
    if any(row.outcome in ("wrong", "refused") for row in rows):
        raise typer.Exit(ExitCode.WEIGHTS_CORRUPT)
    if not any(row.outcome in ("imported", "present") for row in rows):
        raise NoInputError(f"{path} holds none of the published files", "see the paths in oldphoto weights list --json")


@weights_app.command()
def remove(
    nets: Annotated[
        list[str] | None,
        typer.Argument(metavar="NET", help="By default every net of the set.", show_default=False),
    ] = None,
    choice: Choice = WeightChoice.PUBLISHED,
    as_json: AsJson = False,
) -> None:
    """Delete weights that were fetched, imported or converted; never those of the package or of OLDPHOTO_WEIGHTS."""
    from oldphoto import weights

    files = choose(choice)
    if unknown := set(nets or []) - {file.net for file in files}:
        raise UsageError(f"there is no net {', '.join(sorted(unknown))} in this set", "see oldphoto weights list")
    rows = weights.remove(file for file in files if not nets or file.net in nets)
    if as_json:
        print_json([{"net": row.file.net, "path": str(row.path), "bytes": row.bytes} for row in rows])
        return
    for row in rows:
        put(f"removed  {shown(row.path)}  {megabytes(row.bytes)}")
    put(f"{len(rows)} files, {megabytes(sum(row.bytes for row in rows))}")
