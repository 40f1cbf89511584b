"""The command line: parse, call one function, print, exit code. The only file that prints.

Results go to stdout, everything else to stderr. Heavy modules are imported inside the commands: `--help` is quick.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from copy import copy
from dataclasses import asdict
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, cast

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text
from typer.core import TyperGroup

from oldphoto import __version__
from oldphoto.errors import (
    ExitCode,
    FileAccessError,
    NoInputError,
    OldphotoError,
    RefusedOverwriteError,
    UsageError,
    WeightsCorruptError,
    WeightsUnavailableError,
)
from oldphoto.machine.surroundings import (
    Unfailing,
    end_as_ctrl_c,
    has_left,
    ignore_signals,
    let_go,
    show_any_name,
)
from oldphoto.options import MOST_NATIVE_SCALE, Enlargement, Options, read_size
from oldphoto.records.manifest import Manifest, Setting, absolute, error_facts, last_lines
from oldphoto.records.manifest import read as read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from oldphoto.records.manifest import Record
    from oldphoto.records.report import Page
    from oldphoto.runs.batch import Listing, Outcome, Summary, Work
    from oldphoto.runs.planning import Existing, Plan, Planned
    from oldphoto.weights import Copy, WeightFile, WeightSet
    from oldphoto.weights import Model as ModelName
    from oldphoto.weights.sets import SetName


class Nets(StrEnum):
    """Which architecture is trained."""

    COMPACT = "compact"
    PUBLISHED = "published"


class Model(StrEnum):
    """Which weights: published where they can be had else compact, or one of them strictly."""

    AUTO = "auto"
    PUBLISHED = "published"
    COMPACT = "compact"


class Precision(StrEnum):
    """Number format of the networks."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Engine(StrEnum):
    """Where photos are restored: in this process, or by the workers of a Ray cluster."""

    LOCAL = "local"
    RAY = "ray"


class FaceSize(StrEnum):
    """Side of the aligned face crop in pixels."""

    SMALL = "256"
    LARGE = "512"


class LookChoice(StrEnum):
    """How far a photo is changed: rebuilt, or only as far as is surely better."""

    RESTORED = "restored"
    FAITHFUL = "faithful"


class Upscale(StrEnum):
    """How many times larger the output is."""

    TWICE = "2"
    FOUR_TIMES = "4"


class FaceDetector(StrEnum):
    """What says that something is a face: dlib's histograms of gradients, or its network."""

    HOG = "hog"
    CNN = "cnn"


ChosenDetector = Annotated[
    FaceDetector,
    typer.Option(help="dlib's quick detector of frontal faces, or its network: slow, and a file of 0.7 MB to fetch."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]

# A photo on stdin is kept on the disk meanwhile, a list of names in memory.
LARGEST_STDIN, LARGEST_LIST = 4 << 30, 256 << 20
UPSCALES: dict[Upscale, Enlargement] = {Upscale.TWICE: 2, Upscale.FOUR_TIMES: 4}
FACE_SIZES: dict[FaceSize, Literal[256, 512]] = {FaceSize.SMALL: 256, FaceSize.LARGE: 512}


def share_of(help: str) -> Any:
    """An option from 0 to 1 which, left out, is judged."""
    return typer.Option(min=0.0, max=1.0, help=help, show_default=False)


def shown(value: object) -> str:
    """A path or name for one line of text: control characters and undecodable bytes become escapes."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in str(value)
    )


def stderr() -> Console:
    """The console for everything that is not a result; what it cannot be told is left out."""
    file = None if sys.stderr is None else cast("IO[str]", Unfailing(sys.stderr))
    return Console(file=file, stderr=True, highlight=False, soft_wrap=True)


def put(text: str, file: IO[str] | None = None) -> None:
    """One line of results on stdout. Raises FileAccessError if it cannot be written, its cause the OSError."""
    try:
        typer.echo(text, file=file)
    except OSError as error:
        raise FileAccessError(f"cannot write to stdout: {error.strerror}") from error


def put_bytes(write: Callable[[IO[bytes]], object]) -> None:
    """Have bytes written to stdout. Raises FileAccessError as put does."""
    if sys.stdout is None:
        raise FileAccessError("cannot write to stdout: it is closed")
    try:
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise FileAccessError(f"cannot write to stdout: {error.strerror}") from error


def print_error(error: BaseException, console: Console, about: str = "") -> None:
    """One red line, and the advice below it if the error has some."""
    known = isinstance(error, OldphotoError)
    text = shown(error) if known else f"unexpected {type(error).__name__}: {shown(error)}"
    console.print(Text(f"error: {about}{text}", style="red"))
    if isinstance(error, OldphotoError) and error.advice:
        console.print(Text(f"       {shown(error.advice)}"))


class Group(TyperGroup):
    """Turns the error tree, Ctrl-C and memory errors of any command into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; anything but a known failure goes on as a traceback, which is exit code 1."""
        try:
            return super().invoke(ctx)
        except OldphotoError as error:
            if not (error.__cause__ and has_left(error.__cause__)):  # who has left will read no reason
                print_error(error, stderr())
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            stderr().print("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from error
        except (typer.Exit, typer.Abort):  # both are RuntimeErrors
            raise
        except (MemoryError, RuntimeError) as error:
            from oldphoto.machine.memory import out_of_memory, ran_out

            if not ran_out(error):
                raise
            known = out_of_memory()
            print_error(known, stderr())
            raise typer.Exit(known.exit_code) from error


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Restore old photographs: scratches, fading, blur, noise and faces.",
    epilog="Exit codes: 0 done, 1 bug, 2 usage, 3 no input, 4 some photos failed, 5 file access, "
    "6 refused to overwrite, 7 weights unavailable, 8 weights corrupt, 9 out of memory, 10 bad image, 130 interrupted.",
)


def main() -> None:
    """The entry point of the `oldphoto` command."""
    from oldphoto.machine.memory import reuse_pages

    reuse_pages()
    own_standard_error()
    end_as_ctrl_c()
    show_any_name()
    atexit.register(let_go, sys.stdout)
    atexit.register(let_go, sys.stderr)
    atexit.register(ignore_signals)  # which comes first
    atexit.register(gc.freeze)  # or the collector goes through all of torch once more at the end, for half a second
    app(prog_name="oldphoto")


def own_standard_error() -> None:
    """Have Python print through a descriptor of its own, whatever becomes of the process's.

    libtiff prints through that one, so it is turned away while some files are decoded, in threads beside this one.
    """
    with suppress(AttributeError, OSError):  # no standard error, or one that is no file
        if sys.stderr.fileno() == 2:
            sys.stderr.flush()
            sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)


def _print_version(wanted: bool) -> None:
    if wanted:
        put(f"oldphoto {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


# ---- what a run of `restore` says ----


class Report:
    """Says on stderr how a run goes, and gives its results on stdout if JSON is wanted.

    On a terminal one bar runs for the whole batch; elsewhere each photo gets a plain line.
    pipes: the folder of files that stand in for stdin and stdout, which are shown as "-".
    """

    def __init__(self, *, quiet: bool, verbose: bool, as_json: bool, pipes: Path | None = None) -> None:
        self.plan: Plan | None = None
        self.pipes = pipes
        self.quiet = quiet
        self.verbose = verbose
        self.as_json = as_json
        self.console = stderr()
        self.untold: FileAccessError | None = None  # a result that did not reach stdout
        self.stdout = sys.stdout  # while Ray runs, what it prints goes to stderr
        self.lines = verbose or not (quiet or self.console.is_terminal)
        self.done = 0
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task("photos", total=None)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def say(self, text: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            self.console.print(Text(shown(text)))

    def name(self, path: Path) -> str:
        """A path as the user knows it."""
        return "-" if self.pipes is not None and path.is_relative_to(self.pipes) else str(path)

    def planned(self, plan: Plan) -> None:
        """How much there is to do, and what is left out."""
        self.plan = plan
        for note in plan.notes:
            self.say(note)
        self.progress.update(self.task, total=len(plan.photos))
        if self.verbose and plan.ignored:
            self.say(f"passed over {plan.ignored} hidden files, folders, and files that are no photos")
        for photo in plan.skipped:
            if self.verbose:
                self.say(f"{photo.target} exists, skipped")
            self._result("skipped", photo)

    def stale(self, photo: Planned, reason: str) -> None:
        """A photo that an earlier run restored is restored again."""
        self.say(f"{self.name(photo.source)} is restored again: {reason}")

    def dry_run(self, plan: Plan) -> ExitCode:
        """Each photo and what it would become, on stdout; the exit code says if something is known to fail."""
        for photo in plan.photos:
            if photo.problem is not None:
                self._failure(photo, photo.problem)
                self._result("failed", photo, error=error_facts(photo.problem))
            elif self.as_json:
                self._result("planned", photo)
            else:
                put(f"{shown(self.name(photo.source))} -> {shown(photo.target)}")
        failed = [photo.problem for photo in plan.photos if photo.problem is not None]
        if not failed:
            return ExitCode.DONE
        return failed[0].exit_code if plan.single else ExitCode.SOME_FAILED

    def photo_started(self, photo: Planned) -> None:
        """Name the photo in work on the bar, which appears with the first one: before it, weights may have theirs."""
        self.progress.start()
        self.progress.update(self.task, description=shown(Path(self.name(photo.source)).name))

    def photo_done(self, outcome: Outcome) -> None:
        """A photo is restored and written, or has failed."""
        self.done += 1
        self.progress.advance(self.task)
        photo = outcome.planned
        record = outcome.record
        for warning in record["warnings"]:
            self.say(f"{self.name(photo.source)}: {warning}")
        if outcome.error is not None:
            self._failure(photo, outcome.error)
            if self.verbose and not isinstance(outcome.error, OldphotoError):
                self.console.print(Text("".join(traceback.format_exception(outcome.error))))
            self._result("failed", photo, error=error_facts(outcome.error))
            return
        if self.lines:
            of = "" if self.plan is None else f"/{len(self.plan.photos)}"
            line = f"[{self.done}{of}] {self.name(photo.source)} -> {self.name(photo.target)}"
            line += f" ({record['seconds']:.1f} s)"
            if self.verbose and outcome.size is not None:
                stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in record["stages"].items())
                scales = [change.get("native_scale") for change in record["changes"]]
                native = "".join(f", native scale {scale:g}" for scale in scales if scale is not None)
                line += f", {outcome.size[0]} x {outcome.size[1]} pixels{native}, {len(record['faces'])} faces"
                line += f", {stages}"
            self.say(line)
        self._result(
            "restored",
            photo,
            width=outcome.size and outcome.size[0],
            height=outcome.size and outcome.size[1],
            faces=len(record["faces"]),
            seconds=record["seconds"],
            stages=record["stages"],
            warnings=record["warnings"],
        )

    def end(self, summary: Summary) -> ExitCode:
        """The closing line, and the exit code: a single photo's own error, or that of the batch."""
        if self.plan is not None and self.plan.single and summary.failed and not summary.interrupted:
            error = summary.failed[0].error
            if isinstance(error, OldphotoError):
                return error.exit_code
            if error is not None:
                raise error
        restored = len(summary.outcomes) - len(summary.failed)
        parts = [f"{restored} restored"]
        if summary.failed:
            parts.append(f"{len(summary.failed)} failed")
        if self.plan is not None and self.plan.skipped:
            parts.append(f"{len(self.plan.skipped)} skipped")
        if summary.interrupted:
            left = "" if self.plan is None else f" with {len(self.plan.photos) - len(summary.outcomes)} to go"
            parts.append(f"interrupted{left}")
        self.say(", ".join(parts))
        return summary.exit_code or self._told()

    def _told(self) -> ExitCode:
        """DONE if all results have reached stdout, by now; else why not is said."""
        cause = None if self.untold is None else self.untold.__cause__
        if self.untold is None or (cause is not None and has_left(cause)):
            return ExitCode.DONE
        print_error(self.untold, self.console, "all is restored, but not all results are told: ")
        return ExitCode.FILE_ACCESS

    def _failure(self, photo: Planned, error: Exception) -> None:
        named = photo.source.name in str(error)
        print_error(error, self.console, "" if named else f"{shown(self.name(photo.source))}: ")

    def _result(self, status: str, photo: Planned, **facts: Any) -> None:
        if self.as_json:
            paths = {"mask": photo.mask, "saved_mask": photo.mask_target}
            told = {"status": status, "source": str(photo.source), "target": str(photo.target)}
            told |= {name: str(path) for name, path in paths.items() if path is not None}
            try:
                print_json(told | facts, self.stdout)
            except FileAccessError as error:  # what cannot be told is done all the same
                self.untold = error


def print_json(value: dict[str, Any] | list[Any], file: IO[str] | None = None) -> None:
    """One line of JSON on stdout; ASCII, so that any file name survives any locale."""
    put(json.dumps(value), file=file)


# ---- restore ----

# Every option of `restore` under the wish that it belongs to; `--help` shows them in this order.
PANELS = {
    "Input and output": "output recursive from0 overwrite skip_existing format quality suffix name_template dry_run",
    "Damage": "with_scratch mask save_mask scratch_threshold mask_dilation only_damaged",
    "Look": "look native_scale upscale strength tone_strength keep_blur",
    "Faces": "faces face_detector face_size face_strength min_face only_face skip_face save_faces",
    "Large photos": "hr max_memory max_pixels",
    "Batches": "resume shard watch jobs engine ray_address workers",
    "Records": "manifest compare page_path provenance c2pa",
    "Machine": "model device precision offline as_json quiet verbose",
}


def in_panels(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its options in panels, whatever order they are declared in."""
    declared = inspect.signature(command, eval_str=True)
    panels = {name: panel for panel, names in PANELS.items() for name in names.split()}
    order = [name for name in declared.parameters if name not in panels] + list(panels)
    parameters = []
    for parameter in map(declared.parameters.__getitem__, order):
        kind, info = parameter.annotation.__origin__, copy(parameter.annotation.__metadata__[0])
        info.rich_help_panel = panels.get(parameter.name)
        parameters.append(parameter.replace(annotation=Annotated[kind, info]))
    command.__signature__ = declared.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return command


@app.command()
@in_panels
def restore(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Photos, folders and glob patterns; - is a photo on stdin.", show_default=False
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A folder, in which photos keep their names; or for a single photo, the file to write, - for stdout.",
        ),
    ] = "restored",
    with_scratch: Annotated[bool, typer.Option("--with-scratch", help="Find scratches and repair them.")] = False,
    hr: Annotated[
        bool | None,
        typer.Option(
            "--hr/--no-hr", help="The path for large photos; by default the size decides.", show_default=False
        ),
    ] = None,
    faces: Annotated[bool, typer.Option("--faces/--no-faces", help="Find faces and enhance them.")] = Options.faces,
    face_detector: ChosenDetector = FaceDetector.HOG,
    face_size: Annotated[
        FaceSize | None,
        typer.Option(
            help="Side of a face crop in pixels; by default 512 for large photos, else 256.", show_default=False
        ),
    ] = None,
    face_strength: Annotated[
        float | None, share_of("How far faces are enhanced: 0 leaves them, 1 is all; by default judged face by face.")
    ] = Options.face_strength,
    min_face: Annotated[
        int, typer.Option(min=0, metavar="PIXELS", help="Leave faces smaller than this as they are.")
    ] = Options.min_face,
    only_face: Annotated[
        list[int] | None,
        typer.Option(
            metavar="NUMBER", help="Enhance this face alone, as `oldphoto faces` numbers them; may be repeated."
        ),
    ] = None,
    skip_face: Annotated[
        list[int] | None, typer.Option(metavar="NUMBER", help="Leave this face as it is; may be repeated.")
    ] = None,
    save_faces: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write faces before and after into this folder.", show_default=False),
    ] = None,
    only_damaged: Annotated[
        bool,
        typer.Option("--only-damaged", help="Repair scratches alone: all else, faces too, stays exactly as it is."),
    ] = Options.only_damaged,
    strength: Annotated[
        float | None,
        share_of("How much is changed outside of damage: 0 nothing, 1 all; by default judged photo by photo."),
    ] = Options.strength,
    tone_strength: Annotated[
        float | None,
        share_of("How much fading is undone: 0 none, 1 all; by default what has likely faded, photo by photo."),
    ] = Options.tone_strength,
    look: Annotated[
        LookChoice,
        typer.Option(
            help="restored: soft and grainy photos are rebuilt crisp and clean. faithful: only what is surely better "
            "so is changed."
        ),
    ] = LookChoice.RESTORED,
    native_scale: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=MOST_NATIVE_SCALE,
            metavar="X",
            help="How many times larger than its detail a photo is; by default measured photo by photo.",
            show_default=False,
        ),
    ] = Options.native_scale,
    upscale: Annotated[
        Upscale | None, typer.Option(help="Make outputs 2 or 4 times as large.", show_default=False)
    ] = None,
    keep_blur: Annotated[
        bool, typer.Option("--keep-blur", help="Sharpen nothing, however blurred; with --look faithful.")
    ] = False,
    mask: Annotated[
        Path | None,
        typer.Option(
            help="Your own mask, or a folder of masks paired by name; white is repaired. Instead of finding scratches.",
            show_default=False,
        ),
    ] = None,
    save_mask: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the masks into this folder.", show_default=False)
    ] = None,
    scratch_threshold: Annotated[
        float | None, typer.Option(help="Probability from which a pixel counts as scratched.")
    ] = Options.scratch_threshold,
    mask_dilation: Annotated[
        int | None,
        typer.Option(
            help="Pixels by which a mask grows on each side; by default what suits the model.", show_default=False
        ),
    ] = Options.mask_dilation,
    format: Annotated[
        str | None,
        typer.Option(help="Write this format, as jpg, png or tif; by default each input's own.", show_default=False),
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of lossy formats; by default a JPEG's own, else 95.", show_default=False),
    ] = Options.quality,
    suffix: Annotated[str, typer.Option(help="Put after each output's name.", show_default=False)] = "",
    name_template: Annotated[
        str | None,
        typer.Option(
            help='Name outputs so: "{stem}_{number:04}"; {parent} is the input\'s folder.', show_default=False
        ),
    ] = None,
    model: Annotated[
        Model, typer.Option(help="Weights: published ones are fetched once, compact ones come with the package.")
    ] = Model.AUTO,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the networks.")] = Precision.FP32,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders within folders.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave outputs that exist alone.")] = False,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=0, help="Refuse photos with more pixels; 0 is no limit. By default 500 million.", show_default=False
        ),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write what is done to each photo into this JSON Lines file.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write a picture of before and after beside each output.")
    ] = False,
    page_path: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="Make a page of all photos before and after.", show_default=False
        ),
    ] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance/--no-provenance", help="Say in each output's XMP what was done to it.")
    ] = Setting.provenance,
    c2pa: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="CERT KEY", help="Sign a C2PA manifest into each output, with these PEM files.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="MANIFEST",
            help="Go on with the run of this manifest: skip what is done and still as it was written.",
            show_default=False,
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I of N parts of the batch.", show_default=False)
    ] = None,
    from0: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also the photos named in this file, - for stdin, a NUL after each.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Restore what arrives in this folder, until Ctrl-C.", show_default=False),
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Restore here, or on a Ray cluster.")] = Engine.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The Ray cluster; by default one on this machine.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray workers; by default what the cluster holds.", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            metavar="N",
            help="Photos in work at once on the processor, as far as memory allows; by default one for each core.",
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Memory the process may hold, such as 4GB: larger photos go strip by strip, with the same result. By "
            "default half of what is free.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per photo on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line per photo with sizes and times.")] = False,
) -> None:
    """Restore photos. Inputs are never changed; each output has its input's format, and its size unless --upscale
    says otherwise."""
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other", "give one of them")
    if quiet and verbose:
        raise UsageError("--quiet and --verbose contradict each other", "give one of them")
    if save_mask is not None and not (with_scratch or mask):
        raise UsageError("--save-mask has no mask to save", "add --with-scratch or --mask")
    if not faces and (only_face or skip_face or save_faces):
        raise UsageError("--no-faces contradicts --only-face, --skip-face and --save-faces", "leave --no-faces out")
    if resume and (manifest or skip_existing):
        other = "--manifest" if manifest else "--skip-existing"
        raise UsageError(
            f"--resume and {other} contradict each other", "--resume reads the manifest and goes on with it"
        )
    if not (inputs or from0 or watch):
        raise UsageError("no photo is named", "name photos or folders, or use --from0 or --watch")
    if watch and (inputs or from0 or dry_run):
        raise UsageError("--watch takes no other input and no --dry-run", "give the folder alone")
    if engine is Engine.LOCAL and (ray_address or workers):
        raise UsageError("--ray-address and --workers are of --engine ray", "add --engine ray")
    if engine is Engine.RAY and jobs:
        raise UsageError("--jobs is of --engine local", "give --workers")
    if engine is Engine.RAY and watch:
        raise UsageError("--watch does not go with --engine ray", "run --watch without it")
    pipes = bool(inputs and "-" in inputs) or output == "-"
    if pipes:
        beside = bool(manifest or resume or as_json or compare or page_path)
        check_pipes(inputs or [], output, several=bool(from0 or watch), beside=beside)
    if only_damaged and not (with_scratch or mask):
        raise UsageError("--only-damaged has no damage to repair", "add --with-scratch or --mask")
    if watch and name_template is not None and "{number" in name_template:
        raise UsageError("photos that still arrive have no number", "leave {number} out of the template")
    if only_damaged and save_faces is not None:
        raise UsageError("--only-damaged leaves faces alone, --save-faces wants them", "give one of them")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        raise UsageError(f"there is no device {device!r}", "use auto, cpu, cuda, cuda:N or mps")
    options = Options(
        with_scratch=with_scratch,
        hr="auto" if hr is None else "on" if hr else "off",
        faces=faces,
        face_detector=face_detector.value,
        face_size=FACE_SIZES[face_size] if face_size else None,
        scratch_threshold=scratch_threshold,
        mask_dilation=mask_dilation,
        face_strength=face_strength,
        min_face=min_face,
        only_faces=tuple(only_face or ()),
        skip_faces=tuple(skip_face or ()),
        only_damaged=only_damaged,
        tone_strength=tone_strength,
        look=look.value,
        native_scale=native_scale,
        upscale=None if upscale is None else UPSCALES[upscale],
        sharpen=not keep_blur,
        strength=strength,
        quality=quality,
        max_memory=None if max_memory is None else read_size(max_memory),
    )
    from oldphoto.files.image import DEFAULT_MAX_PIXELS
    from oldphoto.records.c2pa import Signer
    from oldphoto.runs import batch, planning, ray_cluster
    from oldphoto.runs.watch import Watch

    limit = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels or None
    part = None if shard is None else planning.Shard.parse(shard)
    signer = None if c2pa is None else Signer.load(*c2pa)
    listed = [] if from0 is None else read_names(from0)
    with ExitStack() as stack:
        spool = None
        if pipes:
            spool = temporary_folder(stack)
            inputs, output = open_pipes(inputs or [], output, spool)
        report = Report(quiet=quiet, verbose=verbose, as_json=as_json, pipes=spool)
        if c2pa is not None and (warning := Signer.exposed(c2pa[1])) is not None:
            report.say(warning)
        records = last_lines(read_manifest(resume)) if resume is not None and os.path.lexists(resume) else {}

        own = own_files(manifest=manifest or resume, report=page_path, c2pa=c2pa, names=from0)

        def make_plan(existing: Existing) -> Plan:
            return planning.plan(
                [str(watch)] if watch else inputs or [],
                output,
                recursive=recursive,
                existing="overwrite" if overwrite else existing,
                masks=mask,
                save_masks=save_mask,
                naming=planning.Naming(format, suffix, name_template),
                save_faces=save_faces,
                compare=compare,
                listed=listed,
                shard=part,
                records=records,
                own=own,
                service=watch is not None,
            )

        plan = None if watch else make_plan("skip" if skip_existing else "refuse")

        @cache
        def weight_set() -> WeightSet:
            photos = None if plan is None else plan.photos
            return find_weights(
                photos, options, model.value, offline=offline or dry_run, masks=bool(mask), report=report
            )

        def load() -> Work:
            tell = report.say if verbose else None
            signed = signer is not None
            return load_models(weight_set(), options, device, precision.value, provenance, signed, tell, jobs)

        @cache
        def setting() -> Setting:
            found = weight_set()
            return Setting(
                *(options, found.name, found.hashes, device, precision.value),
                provenance=provenance,
                signed=signer is not None,
            )

        if plan is not None:
            if records:
                plan = batch.resume(plan, records, setting(), report.stale)
            report.planned(plan)
            if dry_run:
                raise typer.Exit(report.dry_run(plan))
            if overwrite or skip_existing or resume:
                batch.remove_left_over(plan.photos)
        watched = Watch(
            watch or Path(),
            lambda: make_plan("overwrite"),
            lambda photo, record: batch.stale(photo, record, setting()),
            records=records,
            overwrite=overwrite,
            say=report.say,
        )
        photos = watched if plan is None else plan.photos
        keep = None
        if manifest or resume:
            path = cast("Path", manifest or resume)
            keep = stack.enter_context(Manifest(path, resume=resume is not None, overwrite=overwrite)).append
        page = None
        if page_path is not None:
            replace = overwrite or skip_existing or resume is not None
            page = stack.enter_context(open_page(page_path, plan, records, overwrite=replace))

        def started(photo: Planned) -> None:
            watched.started(photo)
            report.photo_started(photo)

        def done(outcome: Outcome) -> None:
            watched.done(outcome)
            report.photo_done(outcome)
            if page is not None:
                page.add(outcome.record, outcome.look)

        run: Callable[..., Summary] = batch.run
        if engine is Engine.RAY:
            if plan is not None and any(photo.problem is None for photo in plan.photos):
                load = partial(
                    load_on_node, weight_set(), options, device, precision.value, provenance, signer is not None
                )
            run = partial(ray_cluster.run, pool=ray_cluster.Pool(ray_address, workers))
        with report, redirect_stdout(sys.stderr if engine is Engine.RAY else sys.stdout):
            summary = run(
                photos,
                load,
                max_pixels=limit,
                look_room=None if page is None else page.room,
                keep=keep,
                sign=None if signer is None else signer.sign,
                on_start=started,
                on_done=done,
            )
        if page is not None:
            cut = plan is not None and summary.interrupted
            page.close("The run was interrupted; the photos below are done." if cut else None)
        if spool is not None and not summary.failed:
            close_pipes(spool)
        raise typer.Exit(report.end(summary))


def own_files(
    *, manifest: Path | None, report: Path | None, c2pa: tuple[Path, Path] | None, names: str | None
) -> dict[Path, str]:
    """The files that a run reads or writes besides photos, and what each is.

    Raises RefusedOverwriteError if one would be written over another.
    """
    written = [] if manifest is None else [(manifest, "the manifest")]
    if report is not None:
        written += [(report, "the report"), (report.with_name(f"{report.stem}.part.html"), "the report's beginning")]
    read = [] if names is None or names == "-" else [(Path(names), "the list of names")]
    read += [] if c2pa is None else [(c2pa[0], "the certificate"), (c2pa[1], "the key")]
    for number, (path, what) in enumerate(written):
        for other, is_it in (*written[:number], *read):
            if absolute(path) == absolute(other):
                raise RefusedOverwriteError(f"{path} would be {is_it} and {what}", "give each a name of its own")
    return dict((*written, *read))


def open_page(path: Path, plan: Plan | None, records: Mapping[Path, Record], *, overwrite: bool) -> Page:
    """A page to look at that begins with what earlier runs have done and this one leaves alone."""
    from oldphoto.records.report import Page, seen
    from oldphoto.runs.batch import blank_record

    waiting, skipped = ((), ()) if plan is None else (plan.photos, plan.skipped)
    page = Page(path, photos=None if plan is None else len(waiting) + len(skipped), overwrite=overwrite)
    again = {absolute(photo.target) for photo in waiting}
    for target, record in records.items():
        if target not in again:
            page.add(*seen(record, page.room))
    for photo in skipped:
        if absolute(photo.target) not in records:
            page.add(*seen(blank_record(photo), page.room), state="skipped")
    return page


def temporary_folder(stack: ExitStack) -> Path:
    """A new folder that goes with `stack`. Raises FileAccessError where there is no place for one."""
    try:
        return Path(stack.enter_context(TemporaryDirectory(prefix="oldphoto-")))
    except OSError as error:
        text = f"cannot make a temporary folder: {error.strerror or error}"
        raise FileAccessError(text, "set TMPDIR to a folder that can be written to, or name files") from error


def check_pipes(inputs: list[str], output: str, *, several: bool, beside: bool) -> None:
    """Raise UsageError where a photo on stdin or stdout does not go together with what else was asked for."""
    if len(inputs) != 1 or several:
        raise UsageError("- stands for one photo", "give one input, and - or a file as output")
    if beside:
        text = "- does not go with --json, --manifest, --resume, --compare or --report"
        raise UsageError(text, "name files instead")
    if inputs == ["-"] and output != "-" and not Path(output).suffix:
        raise UsageError("a photo on stdin has no name of its own", "name the output file with -o, or - for stdout")
    if output == "-" and sys.stdout is None:
        raise FileAccessError("cannot write to stdout: it is closed", "send it to a file, or name one with -o")
    if output == "-" and sys.stdout.isatty():
        raise UsageError("a photo is not written to a terminal", "send stdout to a file or another program")


def open_pipes(inputs: list[str], output: str, spool: Path) -> tuple[list[str], str]:
    """The files in the folder `spool` that stand in for stdin, which is read to its end here, and for stdout.

    Raises FileAccessError where stdin is closed or has more than can be kept.
    """
    if inputs == ["-"]:
        inputs = [str(spool / "stdin")]
        if sys.stdin is None:
            raise FileAccessError("cannot read stdin: it is closed", "send a photo to it, or name a file")
        try:
            # Whatever comes, the disk is not filled.
            most = min(LARGEST_STDIN, shutil.disk_usage(spool).free // 2)
            with (spool / "stdin").open("wb") as file:
                while chunk := sys.stdin.buffer.read(1 << 20):
                    if file.tell() + len(chunk) > most:
                        text = f"there is more on stdin than {spool.parent} should hold: {most:,} bytes"
                        raise FileAccessError(text, "name a file instead, or set TMPDIR to a larger disk")
                    file.write(chunk)
        except OSError as error:
            text = f"cannot keep the photo from stdin in {spool.parent}: {error.strerror}"
            raise FileAccessError(text, "free some space, or set TMPDIR to another disk") from error
    return inputs, str(spool / "stdout") if output == "-" else output


def close_pipes(spool: Path) -> None:
    """Send the photo that was written for stdout there, if there is one."""
    for path in (spool / "stdout").glob("*"):
        with path.open("rb") as file:
            put_bytes(partial(shutil.copyfileobj, file))


def read_names(source: str) -> list[str]:
    """File names with a NUL after each, from a file or from stdin for "-"."""
    if source == "-" and sys.stdin is None:
        raise FileAccessError("cannot read stdin: it is closed", "send names to it, or name a file")
    try:
        # A pipe is welcome, but it has to end.
        if source == "-":
            data = sys.stdin.buffer.read(LARGEST_LIST + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(LARGEST_LIST + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileAccessError(f"cannot read {source}: {reason}", "check the name") from error
    if len(data) > LARGEST_LIST:
        raise UsageError(f"{source} has more than {LARGEST_LIST:,} bytes of names", "name a folder with --recursive")
    return [os.fsdecode(name) for name in data.split(b"\0") if name]


def find_weights(
    photos: Sequence[Planned] | None, options: Options, model: str, *, offline: bool, masks: bool, report: Report
) -> WeightSet:
    """Have the weights that these photos need and no others; all, where the photos are not known yet."""
    from oldphoto import weights
    from oldphoto.runs import planning
    from oldphoto.stages import nets_for_all

    def nets(name: SetName) -> tuple[str, ...]:
        # Photos of both kinds may need the nets of both paths.
        return nets_for_all(name, [options], planning.large_or_not(photos, options), [masks])

    with Downloads(report.console, quiet=report.quiet) as downloads:
        weight_set = weights.resolve(cast("ModelName", model), nets, offline=offline, progress=downloads.report)
    if weight_set.note is not None:
        report.say(weight_set.note)
    return weight_set


def load_on_node(weight_set: WeightSet, *choices: Any) -> Work:
    """As load_models, on a machine that has its own copies of the weights, or fetches them."""
    from oldphoto import weights

    return load_models(weights.resolve(weight_set.name, lambda name: list(weight_set.files)), *choices)


def load_models(
    weight_set: WeightSet,
    options: Options,
    device: str,
    precision: str,
    provenance: bool,
    signed: bool,
    tell: Callable[[str], None] | None = None,
    jobs: int | None = None,
) -> Work:
    """Load the networks, once, and give what restores photos. tell: is told what each photo is going to take. jobs: how
    many are in work at once."""
    from oldphoto.models.loaded import Models
    from oldphoto.runs import batch

    models = Models.load(weight_set, device, precision)
    return batch.work_with(models, options, provenance=provenance, signed=signed, tell=tell, jobs=jobs)


class Downloads:
    """One bar per file that is fetched: name, bytes, rate, time left; off a terminal, one line per file."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.console = console
        self.lines = not quiet and not console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Downloads:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, file: WeightFile, done: int, total: int | None) -> None:
        """`done` of `total` bytes of a file are here; `total` is None where nobody knows."""
        if file.path not in self.tasks:
            self.progress.start()
            self.tasks[file.path] = self.progress.add_task(file.net, total=total)
            if self.lines:
                self.console.print(Text(f"fetching {file.path}{'' if total is None else f' ({megabytes(total)})'}"))
        self.progress.update(self.tasks[file.path], completed=done, total=total)


def megabytes(count: int | None) -> str:
    """A number of bytes for people; a question mark where nobody knows."""
    return "? MB" if count is None else f"{count / 1e6:.1f} MB"


# ---- verify ----


@app.command()
def verify(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Hash inputs and outputs again and say what has changed since they were restored; exit code 4 if anything has."""
    from oldphoto.records import manifest

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


@app.command("premis")
def export_premis(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
) -> None:
    """Write a manifest as PREMIS 3 XML to stdout: files as objects, restorations as events."""
    from oldphoto.records.premis import premis

    document = premis(record for path in manifests for record in read_manifest(path))
    put_bytes(lambda stdout: stdout.write(document))


# ---- faces ----


@app.command("faces")
def list_faces(
    inputs: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Photos, folders and glob patterns.", show_default=False)
    ],
    draw: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR", help="Also write the photos with their faces numbered.", show_default=False),
    ] = None,
    face_detector: ChosenDetector = FaceDetector.HOG,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace drawn photos that exist.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders within folders.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per photo on stdout.")] = False,
) -> None:
    """List the faces of photos by the numbers that `restore --only-face` and `--skip-face` take."""
    from oldphoto.runs import batch, planning

    if draw is None:
        photos = planning.find_photos(inputs, recursive=recursive)
    else:
        existing: Literal["overwrite", "refuse"] = "overwrite" if overwrite else "refuse"
        photos = planning.plan(inputs, draw, recursive=recursive, existing=existing).photos
    detector = None
    if face_detector is FaceDetector.CNN:
        from oldphoto import weights
        from oldphoto.stages.faces import cnn_detector

        (file,) = (file for file in weights.read_lock() if file.net == weights.CNN_DETECTOR)
        with Downloads(stderr(), quiet=as_json) as downloads:
            detector = cnn_detector(weights.obtain(file, progress=downloads.report))
    errors: list[OldphotoError] = []
    for listing in batch.list_faces(photos, draw=draw is not None, detector=detector):
        source, error = listing.planned.source, listing.error
        if error is not None:
            print_error(error, stderr(), "" if source.name in str(error) else f"{shown(source)}: ")
            errors.append(error)
        if as_json:
            print_json(listing_facts(listing, drawn=draw is not None))
        elif error is None:
            put(f"{shown(source)}: {len(listing.faces) or 'no'} face{'s'[: len(listing.faces) != 1]}")
            for number, face in enumerate(listing.faces, 1):
                left, top, right, bottom = (round(edge) for edge in face.bounds)
                turned = f", turned {round(face.turn)} degrees" if face.turn else ""
                where = f"{left},{top} to {right},{bottom}, {round(face.side)} pixels{turned}"
                put(f"  {number:3}  {where}, score {face.score:.2f}")
    if errors:
        raise typer.Exit(errors[0].exit_code if len(photos) == 1 else ExitCode.SOME_FAILED)


def listing_facts(listing: Listing, *, drawn: bool) -> dict[str, Any]:
    """The faces of one photo for JSON: boxes are left, top, right, bottom in pixels."""
    facts: dict[str, Any] = {"source": str(listing.planned.source)}
    if listing.error is not None:
        return facts | {"error": error_facts(listing.error)}
    facts |= {"drawn": str(listing.planned.target)} if drawn else {}
    return facts | {
        "width": listing.size and listing.size[0],
        "height": listing.size and listing.size[1],
        "faces": [
            {
                "number": number,
                "box": [round(edge, 1) for edge in face.bounds],
                "size": round(face.side, 1),
                "score": round(face.score, 3),
                "turn": round(face.turn, 1),
            }
            for number, face in enumerate(listing.faces, 1)
        ],
    }


# ---- report ----


@app.command("report")
def make_report(
    manifests: Annotated[
        list[Path], typer.Argument(metavar="MANIFEST", help="Files that --manifest wrote.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that exists.")] = False,
) -> None:
    """Make a page of before and after from a manifest and the files it names; nothing is restored again."""
    from oldphoto.records.manifest import read
    from oldphoto.records.report import write_report

    count = write_report(output, (record for path in manifests for record in read(path)), overwrite=overwrite)
    stderr().print(Text(f"{count} photo{'s'[: count != 1]} in {shown(output)}"))


# ---- weights ----

weights_app = typer.Typer(no_args_is_help=True, help="See, fetch, check, import and remove weight files.")
app.add_typer(weights_app, name="weights")


class WeightChoice(StrEnum):
    """One set of weights, or both."""

    PUBLISHED = "published"
    COMPACT = "compact"
    ALL = "all"


class Mode(StrEnum):
    """What `restore` is to be run with: plain, `--with-scratch`, large photos, or any of them."""

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
    """What weights.lock says of a file, and what lies on this machine, for JSON and for a table."""
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


# ---- doctor ----


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is installed here, on what it can run, which weights are present, and what their licences forbid."""
    from oldphoto.doctor import diagnose

    facts = diagnose()
    if as_json:
        print_json(facts)
        return
    for title, rows in facts.items():
        put(f"{title}:")
        for name, value in rows.items() if isinstance(rows, dict) else ((None, row) for row in rows):
            put(f"  {shown(value)}" if name is None else f"  {name:34}  {shown(value)}")


@app.command()
def bench(
    sizes: Annotated[str, typer.Option(help="Megapixels, with commas between.")] = "1,4",
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.", show_default=False)
    ] = None,
    model: Annotated[Model, typer.Option(help="Which weight set.")] = Model.COMPACT,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Number format of the networks.")] = Precision.FP32,
    max_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="As for restore, such as 4GB.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seconds per megapixel and peak memory of each stage on this machine, on a made-up photo: plan a batch by it."""
    try:
        megapixels = [float(size) for size in sizes.split(",")]
    except ValueError:
        megapixels = [0.0]
    if min(megapixels) <= 0.0:
        raise UsageError(f"{sizes!r} are no sizes in megapixels", "give some like 1,4,12")
    options = Options(max_memory=None if max_memory is None else read_size(max_memory))
    from oldphoto import weights
    from oldphoto.bench import STAGES
    from oldphoto.bench import bench as run
    from oldphoto.machine.memory import gigabytes
    from oldphoto.models.loaded import Models
    from oldphoto.stages import nets_for_all

    if unknown := set(stage or ()) - set(STAGES):
        raise UsageError(f"there is no stage {', '.join(sorted(unknown))}", f"the stages are {', '.join(STAGES)}")
    console = stderr()

    def nets(name: SetName) -> tuple[str, ...]:
        return nets_for_all(name, [Options(with_scratch=damaged, faces=False) for damaged in (False, True)])

    with Downloads(console, quiet=as_json) as downloads:
        weight_set = weights.resolve(model.value, nets, progress=downloads.report)
    models = Models.load(weight_set, device, precision.value)
    for row in run(models, megapixels, options, tuple(stage or ())):
        if as_json:
            print_json(asdict(row) | {"seconds_per_megapixel": row.seconds_per_megapixel})
            continue
        way = "" if row.way is None else f", {row.way}"
        rate = f"{row.seconds:8.2f} s  {row.seconds_per_megapixel:7.2f} s/MP  {row.cpu_seconds:8.2f} s CPU"
        memory = gigabytes(row.peak_memory_bytes)
        put(f"{row.width} x {row.height}  {row.stage:22}{rate}  {memory:>7}{way}")


# ---- training ----

Data = Annotated[
    Path, typer.Option("--data", help="Folder with clean/, old/, damage/ and faces/ (a train/ folder in each is used).")
]


@app.command()
def train(
    stage: Annotated[
        str,
        typer.Argument(
            help="landmarks, scratch-unet, old-vae, clean-vae, mapping, finetune, face-generator, face-finder; in this "
            "order. The published ones have no finetune and no face-finder, but mapping-scratch, "
            "mapping-patch-attention, face-generator-256, -512. all: every one but landmarks."
        ),
    ],
    data: Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of weights, checkpoints and logs.")],
    nets: Annotated[
        Nets, typer.Option(help="The compact networks, or the published architecture at full width.")
    ] = Nets.COMPACT,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps in all.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Crops a step.")] = None,
    size: Annotated[int | None, typer.Option(min=64, help="Side of a crop in pixels, a multiple of 32.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.0, help="Learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and samples.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of weights that the stage goes on from, instead of from nothing.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="End each stage after so many minutes if its steps take longer.")
    ] = None,
) -> None:
    """Run one stage of training, or all, going on from the last checkpoint; run it again after an interruption."""
    console = stderr()
    from oldphoto.training.train import train as run
    from oldphoto.training.train import train_all

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(shown(stage), total=None, losses="")

        def report(name: str, row: dict[str, float | int | str]) -> None:
            losses = " ".join(f"{k} {v}" for k, v in row.items() if k not in ("step", "of", "seconds"))
            progress.update(
                task, description=shown(name), completed=float(row["step"]), total=float(row["of"]), losses=losses
            )
            if not console.is_terminal:
                console.print(Text(f"{shown(name)} {row['step']}/{row['of']} {row['seconds']} s {losses}"))

        recipe: dict[str, Any] = {"steps": steps, "batch": batch, "size": size, "rate": rate, "seed": seed}
        recipe["minutes"] = minutes
        if stage == "all":
            if start is not None:
                raise UsageError("all stages cannot go on from one folder", "name one stage with --start")
            files = train_all(data, output, nets=nets.value, device=device, report=report, **recipe)
        else:
            files = run(
                stage,
                data,
                output,
                nets=nets.value,
                start=start,
                device=device,
                report=lambda row: report(stage, row),
                **recipe,
            )
    for file in files:
        put(shown(file))


@app.command()
def evaluate(
    photos: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of clean photos that no weights were trained on; with --labels the one folder that the paths "
            "of the labels' index start from."
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder of damage labelled by hand on real photos: scores masks and repairs by it."),
    ] = None,
    damage: Annotated[Path | None, typer.Option(help="Folder of damage overlays, a sub-folder for each kind.")] = None,
    tuning: Annotated[
        Path | None, typer.Option(help="Folder of other clean photos, to tune the classical tools on.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="With --labels: photos whose paths begin so, and no others; repeatable.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="With --labels: the probability from which the detector is believed.")
    ] = None,
    model: Annotated[Model, typer.Option(help="Which weight set.")] = Model.COMPACT,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="No more than this many photos.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a weight set: on real photos with damage labelled by hand (--labels), or on photos that are degraded here,
    beside the degraded input and the best classical tools (--damage and --tuning)."""
    from oldphoto import weights
    from oldphoto.models.loaded import Models
    from oldphoto.stages import nets_for_all
    from oldphoto.training.evaluate import PLAIN, SCRATCHED, judge_labels
    from oldphoto.training.evaluate import evaluate as run

    if labels is not None and (damage or tuning):
        raise UsageError("--labels is for real damage, --damage and --tuning for drawn", "give one or the others")
    if labels is None and not (damage and tuning):
        raise UsageError("there is nothing to score by", "give --labels, or --damage and --tuning")
    if labels is None and (only or threshold is not None):
        raise UsageError("--only and --threshold choose among labelled photos and masks", "give --labels, too")
    if labels is not None and len(photos) != 1:
        raise UsageError("the paths of labels start from one folder", "give one")
    console = stderr()
    weight_set = weights.resolve(
        model.value, lambda name: nets_for_all(name, [PLAIN, SCRATCHED], large=[False], masks=[False, True])
    )
    models = Models.load(weight_set, device)

    def report(line: str) -> None:
        console.print(Text(line))

    if labels is not None:
        judged = judge_labels(models, labels, photos[0], tuple(only or ("",)), threshold, limit, report)
        if as_json:
            print_json(judged)
        else:
            typer.echo("\n".join(label_lines(judged)))
        return
    assert damage is not None
    assert tuning is not None
    facts = run(models, photos, damage, tuning, limit=limit, report=report)
    if as_json:
        print_json(facts)
        return
    put(f"{facts['photos']} photos; colour shift of undamaged ones {facts['colour_shift']} (mean CIE dE2000)")
    put(f"scratches: {facts['scratches']}")
    scores = cast("dict[str, dict[str, dict[str, float]]]", facts["scores"])
    for case, rows in scores.items():
        put(case)
        for method, score in rows.items():
            figures = f"PSNR {score['psnr']:6.2f} dB  SSIM {score['ssim']:.4f}  GMSD {score['gmsd']:.4f}"
            put(f"  {method:26} {figures}  lowest PSNR {score['lowest']:.2f} dB")


def label_lines(judged: Mapping[str, Any]) -> list[str]:
    """What `evaluate --labels` says of a weight set, a line for each kind of damage and for all."""

    def shown_share(value: float | None) -> str:
        return "    -" if value is None else f"{value:5.2f}"

    lines = [
        f"{name:18} {kind['pieces']:5} pieces, found {shown_share(kind['found'])}, left {shown_share(kind['left'])}"
        for name, kind in judged["kinds"].items()
    ]
    total = judged["total"]
    figures = ("recall", "precision", "pieces", "kinds", "left")
    lines.append(", ".join(f"{name} {shown_share(total[name]).strip()}" for name in figures))
    if total["false"] is not None:
        lines.append(f"{total['false']:.3%} of the photos without damage taken for it")
    return lines


@app.command()
def degrade(
    inputs: Annotated[list[Path], typer.Argument(help="Folders of clean photos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the degraded PNGs, which must be new.")],
    recipe: Annotated[str, typer.Option(help="published, wider, or the name of one degradation.")] = "published",
    damage: Annotated[Path | None, typer.Option(help="Folder of damage overlays to paint white on top.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 2026,
) -> None:
    """Make pairs for training or tests: degraded copies of clean photos, and <name>.mask.png of the damage."""
    from oldphoto.training.pairs import write_pairs

    count = write_pairs(inputs, output, recipe, damage, seed)
    put(f"{count} pairs in {shown(output)}")
