"""Tell on the terminal how a run of `restore` goes."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from oldphoto.cli.terminal import print_error, print_json, put, shown, stderr
from oldphoto.errors import ExitCode, FileAccessError, OldphotoError, UsageError
from oldphoto.machine.surroundings import has_left
from oldphoto.options import Flag, Panel
from oldphoto.records.manifest import error_facts

if TYPE_CHECKING:
    from oldphoto.runs.batch import Outcome, Summary
    from oldphoto.runs.planning import Plan, Planned


@dataclass(frozen=True)
class Verbosity:
    """A run's choice of how much it prints, and in which form."""

    as_json: Annotated[bool, Flag(Panel.MACHINE, "One JSON object per photo on stdout.", words=("--json",))] = False
    quiet: Annotated[bool, Flag(Panel.MACHINE, "Errors only.", words=("--quiet", "-q"))] = False
    verbose: Annotated[
        bool, Flag(Panel.MACHINE, "A line per photo with sizes and times.", words=("--verbose", "-v"))
    ] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose contradict each other", "give one of them")


class RunProgress:
    """Says on stderr how a run goes, and gives its results on stdout if JSON is wanted.

    On a terminal one bar runs for the whole batch; elsewhere each photo gets a plain line.
    pipes: the folder of files that stand in for stdin and stdout, which are shown as "-".
    """

    def __init__(self, verbosity: Verbosity, *, pipes: Path | None = None) -> None:
        self.plan: Plan | None = None
        self.pipes = pipes
        self.quiet = verbosity.quiet
        self.verbose = verbosity.verbose
        self.as_json = verbosity.as_json
        self.console = stderr()
        self.untold: FileAccessError | None = None  # a result that did not reach stdout
        self.stdout = sys.stdout  # while Ray runs, what it prints goes to stderr
        self.lines = self.verbose or not (self.quiet or self.console.is_terminal)
        self.done = 0
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task("photos", total=None)

    def __enter__(self) -> RunProgress:
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
        """Tell how much there is to do, and what is left out."""
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
