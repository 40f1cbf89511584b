"""The command `restore`: flags -> RunRequest -> a run -> exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, redirect_stdout
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from oldphoto.cli import networks, pipes
from oldphoto.cli.flags import from_flags, with_flags
from oldphoto.cli.progress import RunProgress, Verbosity
from oldphoto.options import Options
from oldphoto.records.manifest import Manifest, Setting, absolute
from oldphoto.runs.request import RunRequest

if TYPE_CHECKING:
    from oldphoto.records.manifest import Record
    from oldphoto.records.report import Page
    from oldphoto.runs.batch import Outcome, Summary, Work
    from oldphoto.runs.planning import Existing, Plan, Planned
    from oldphoto.weights import WeightSet


@with_flags(Options, RunRequest, Verbosity)
def restore(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Photos, folders and glob patterns; - is a photo on stdin.", show_default=False
        ),
    ] = None,
    **given: Any,
) -> None:
    """Restore photos. Inputs are never changed; each output has its input's format, and its size unless --upscale
    says otherwise."""
    verbosity = from_flags(Verbosity, given)
    request = from_flags(RunRequest, given, inputs=tuple(inputs or ()), options=from_flags(Options, given))
    piped = pipes.wanted(request)
    if piped:
        pipes.check(request, as_json=verbosity.as_json)
    with ExitStack() as stack:
        spool = None
        if piped:
            spool = pipes.temporary_folder(stack)
            request = pipes.open_pipes(request, spool)
        run = Run(request, RunProgress(verbosity, pipes=spool), stack)
        summary = run.restore()
        if spool is not None and not summary.failed:
            pipes.close_pipes(spool)
        raise typer.Exit(run.progress.end(summary))


class Run:
    """One run of the command: what it was asked for, and what is made from that when it is needed.

    stack: closes the manifest and the report page.
    """

    def __init__(self, request: RunRequest, progress: RunProgress, stack: ExitStack) -> None:
        from oldphoto.records.c2pa import Signer
        from oldphoto.runs.planning import Shard

        self.request = request
        self.progress = progress
        self.stack = stack
        self.shard = None if request.shard is None else Shard.parse(request.shard)
        self.signer = None if request.c2pa is None else Signer.load(*request.c2pa)
        self.listed = [] if request.from0 is None else pipes.read_names(request.from0)
        if request.c2pa is not None and (warning := Signer.exposed(request.c2pa[1])) is not None:
            progress.say(warning)
        self.records = request.earlier_records()
        self.own = request.own_files()
        self.plan = None if request.watch else self.make_plan("skip" if request.skip_existing else "refuse")

    def restore(self) -> Summary:
        """Restore all photos, several at once, and say how it goes. Raises typer.Exit after a dry run."""
        from oldphoto.files.image import DEFAULT_MAX_PIXELS

        request = self.request
        if self.plan is not None:
            self.announce()
        photos = self.watched if self.plan is None else self.plan.photos
        keep = None
        if request.record_file is not None:
            log = Manifest(request.record_file, resume=request.resume is not None, overwrite=request.overwrite)
            keep = self.stack.enter_context(log).append
        page = self.open_page()
        run, load = self.engine()
        limit = request.max_pixels
        with self.progress, redirect_stdout(sys.stderr if request.engine == "ray" else sys.stdout):
            summary = run(
                photos,
                load,
                max_pixels=DEFAULT_MAX_PIXELS if limit is None else limit or None,
                look_room=None if page is None else page.room,
                keep=keep,
                sign=None if self.signer is None else self.signer.sign,
                on_start=self.started,
                on_done=partial(self.done, page),
            )
        if page is not None:
            cut = self.plan is not None and summary.interrupted
            page.close("The run was interrupted; the photos below are done." if cut else None)
        return summary

    def make_plan(self, existing: Existing) -> Plan:
        """Pair photos with outputs. existing: what happens where an output exists, unless it is to be overwritten."""
        from oldphoto.runs import planning

        request = self.request
        return planning.plan(
            [str(request.watch)] if request.watch else request.inputs,
            request.output,
            recursive=request.recursive,
            existing="overwrite" if request.overwrite else existing,
            masks=request.mask,
            naming=planning.Naming(request.format, request.suffix, request.name_template),
            beside=planning.Beside(request.save_mask, request.save_faces, request.compare),
            listed=self.listed,
            shard=self.shard,
            records=self.records,
            own=self.own,
            service=request.watch is not None,
        )

    def announce(self) -> None:
        """Leave out what an earlier run has done, and say what there is to do. Raises typer.Exit for a dry run."""
        from oldphoto.runs import batch

        assert self.plan is not None
        request = self.request
        if self.records:
            self.plan = batch.resume(self.plan, self.records, self.settings, self.progress.stale)
        self.progress.planned(self.plan)
        if request.dry_run:
            raise typer.Exit(self.progress.dry_run(self.plan))
        if request.overwrite or request.skip_existing or request.resume:
            batch.remove_left_over(self.plan.photos)

    def engine(self) -> tuple[Callable[..., Summary], Callable[[], Work]]:
        """Return the function that restores the photos, here or on a cluster, and the one that loads the networks
        there."""
        from oldphoto.runs import batch, ray_cluster

        if self.request.engine == "local":
            return batch.run, self.load
        load = self.load
        if self.plan is not None and any(photo.problem is None for photo in self.plan.photos):
            load = partial(networks.load_on_node, self.weight_set, self.request)
        pool = ray_cluster.Pool(self.request.ray_address, self.request.workers)
        return partial(ray_cluster.run, pool=pool), load

    def load(self) -> Work:
        """Load the networks."""
        tell = self.progress.say if self.progress.verbose else None
        return networks.load_models(self.weight_set, self.request, tell)

    @cached_property
    def weight_set(self) -> WeightSet:
        """The weights that the photos need, fetched where they are missing."""
        photos = None if self.plan is None else self.plan.photos
        return networks.find_weights(photos, self.request, self.progress)

    @cached_property
    def settings(self) -> Setting:
        """The settings that the records of all photos have in common."""
        request = self.request
        return Setting(
            request.options,
            self.weight_set.name,
            self.weight_set.hashes,
            request.device,
            request.precision,
            provenance=request.provenance,
            signed=request.c2pa is not None,
        )

    @cached_property
    def watched(self) -> Any:
        """The photos that arrive in the folder to watch."""
        from oldphoto.runs import batch
        from oldphoto.runs.watch import Watch

        return Watch(
            self.request.watch or Path(),
            lambda: self.make_plan("overwrite"),
            lambda photo, record: batch.stale(photo, record, self.settings),
            records=self.records,
            overwrite=self.request.overwrite,
            say=self.progress.say,
        )

    def open_page(self) -> Page | None:
        """The page to look at, if one is wanted."""
        request = self.request
        if request.report is None:
            return None
        replace = request.overwrite or request.skip_existing or request.resume is not None
        return self.stack.enter_context(open_page(request.report, self.plan, self.records, overwrite=replace))

    def started(self, photo: Planned) -> None:
        """Note that a photo is in work."""
        if self.plan is None:
            self.watched.started(photo)
        self.progress.photo_started(photo)

    def done(self, page: Page | None, outcome: Outcome) -> None:
        """Note what became of a photo."""
        if self.plan is None:
            self.watched.done(outcome)
        self.progress.photo_done(outcome)
        if page is not None:
            page.add(outcome.record, outcome.look)


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
