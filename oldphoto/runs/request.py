"""All that one run is asked for, with its cross-checks. Imports nothing heavy: `--help` is made from it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from oldphoto.errors import RefusedOverwriteError, UsageError
from oldphoto.options import Flag, Options, Panel, check_declared
from oldphoto.records.manifest import Record, Setting, absolute, last_lines, read

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class RunRequest:
    """The photos of a run, the files that it writes, and how it goes about it; `options` is what each photo gets.

    The flags say what each field does. inputs: photos, folders and glob patterns. output: a folder or a file. Raises
    UsageError for what contradicts itself.
    """

    options: Options = field(default_factory=Options)
    inputs: tuple[str, ...] = ()
    output: Annotated[
        str,
        Flag(
            Panel.FILES,
            "A folder, in which photos keep their names; or for a single photo, the file to write, - for stdout.",
            words=("--output", "-o"),
        ),
    ] = "restored"
    recursive: Annotated[bool, Flag(Panel.FILES, "Search folders within folders.", words=("--recursive", "-r"))] = False
    from0: Annotated[
        str | None,
        Flag(Panel.FILES, "Also the photos named in this file, - for stdin, a NUL after each.", metavar="FILE"),
    ] = None
    overwrite: Annotated[bool, Flag(Panel.FILES, "Replace outputs that exist.")] = False
    skip_existing: Annotated[bool, Flag(Panel.FILES, "Leave outputs that exist alone.")] = False
    format: Annotated[
        str | None, Flag(Panel.FILES, "Write this format, as jpg, png or tif; by default each input's own.")
    ] = None
    suffix: Annotated[str, Flag(Panel.FILES, "Put after each output's name.")] = ""
    name_template: Annotated[
        str | None,
        Flag(Panel.FILES, 'Name outputs so: "{stem}_{number:04}"; {parent} is the input\'s folder.'),
    ] = None
    dry_run: Annotated[bool, Flag(Panel.FILES, "Show what would be done, and do nothing.")] = False
    mask: Annotated[
        Path | None,
        Flag(
            Panel.DAMAGE,
            "Your own mask, or a folder of masks paired by name; white is repaired. Instead of finding scratches.",
            after="with_scratch",
        ),
    ] = None
    save_mask: Annotated[
        Path | None, Flag(Panel.DAMAGE, "Also write the masks into this folder.", after="mask", metavar="DIR")
    ] = None
    save_faces: Annotated[
        Path | None,
        Flag(Panel.FACES, "Also write faces before and after into this folder.", metavar="DIR"),
    ] = None
    max_pixels: Annotated[
        int | None,
        Flag(Panel.LARGE, "Refuse photos with more pixels; 0 is no limit. By default 500 million.", least=0),
    ] = None
    resume: Annotated[
        Path | None,
        Flag(
            Panel.BATCHES,
            "Go on with the run of this manifest: skip what is done and still as it was written.",
            metavar="MANIFEST",
        ),
    ] = None
    shard: Annotated[str | None, Flag(Panel.BATCHES, "Only part I of N parts of the batch.", metavar="I/N")] = None
    watch: Annotated[
        Path | None,
        Flag(Panel.BATCHES, "Restore what arrives in this folder, until Ctrl-C.", metavar="DIR"),
    ] = None
    jobs: Annotated[
        int | None,
        Flag(
            Panel.BATCHES,
            "Photos in work at once on the processor, as far as memory allows; by default one for each core.",
            words=("--jobs", "-j"),
            least=1,
            metavar="N",
        ),
    ] = None
    engine: Annotated[Engine, Flag(Panel.BATCHES, "Restore here, or on a Ray cluster.")] = "local"
    ray_address: Annotated[
        str | None,
        Flag(Panel.BATCHES, "The Ray cluster; by default one on this machine.", metavar="HOST:PORT"),
    ] = None
    workers: Annotated[int | None, Flag(Panel.BATCHES, "Ray workers; by default what the cluster holds.", least=1)] = (
        None
    )
    manifest: Annotated[
        Path | None,
        Flag(Panel.RECORDS, "Write what is done to each photo into this JSON Lines file.", metavar="FILE"),
    ] = None
    compare: Annotated[bool, Flag(Panel.RECORDS, "Also write a picture of before and after beside each output.")] = (
        False
    )
    report: Annotated[
        Path | None, Flag(Panel.RECORDS, "Make a page of all photos before and after.", metavar="FILE")
    ] = None
    provenance: Annotated[bool, Flag(Panel.RECORDS, "Say in each output's XMP what was done to it.")] = (
        Setting.provenance
    )
    c2pa: Annotated[
        tuple[Path, Path] | None,
        Flag(Panel.RECORDS, "Sign a C2PA manifest into each output, with these PEM files.", metavar="CERT KEY"),
    ] = None
    model: Annotated[
        Literal["auto", "published", "compact"],
        Flag(Panel.MACHINE, "Weights: published ones are fetched once, compact ones come with the package."),
    ] = "auto"
    device: Annotated[str, Flag(Panel.MACHINE, "auto, cpu, cuda, cuda:N or mps.")] = "auto"
    precision: Annotated[Literal["fp32", "fp16", "bf16"], Flag(Panel.MACHINE, "Number format of the networks.")] = (
        "fp32"
    )
    offline: Annotated[bool, Flag(Panel.MACHINE, "Never touch the network.")] = False

    def __post_init__(self) -> None:
        check_declared(self)
        self._check_files()
        self._check_engine()
        self._check_damage()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device):
            raise UsageError(f"there is no device {self.device!r}", "use auto, cpu, cuda, cuda:N or mps")

    def _check_files(self) -> None:
        if self.overwrite and self.skip_existing:
            raise UsageError("--overwrite and --skip-existing contradict each other", "give one of them")
        if self.resume and (self.manifest or self.skip_existing):
            other = "--manifest" if self.manifest else "--skip-existing"
            raise UsageError(
                f"--resume and {other} contradict each other", "--resume reads the manifest and goes on with it"
            )
        if not (self.inputs or self.from0 or self.watch):
            raise UsageError("no photo is named", "name photos or folders, or use --from0 or --watch")
        if self.watch and (self.inputs or self.from0 or self.dry_run):
            raise UsageError("--watch takes no other input and no --dry-run", "give the folder alone")
        if self.watch and self.name_template is not None and "{number" in self.name_template:
            raise UsageError("photos that still arrive have no number", "leave {number} out of the template")

    def _check_engine(self) -> None:
        if self.engine == "local" and (self.ray_address or self.workers):
            raise UsageError("--ray-address and --workers are of --engine ray", "add --engine ray")
        if self.engine == "ray" and self.jobs:
            raise UsageError("--jobs is of --engine local", "give --workers")
        if self.engine == "ray" and self.watch:
            raise UsageError("--watch does not go with --engine ray", "run --watch without it")

    def _check_damage(self) -> None:
        options, damaged = self.options, self.options.with_scratch or self.mask is not None
        if self.save_mask is not None and not damaged:
            raise UsageError("--save-mask has no mask to save", "add --with-scratch or --mask")
        if not options.faces and (options.only_faces or options.skip_faces or self.save_faces):
            raise UsageError("--no-faces contradicts --only-face, --skip-face and --save-faces", "leave --no-faces out")
        if options.only_damaged and not damaged:
            raise UsageError("--only-damaged has no damage to repair", "add --with-scratch or --mask")
        if options.only_damaged and self.save_faces is not None:
            raise UsageError("--only-damaged leaves faces alone, --save-faces wants them", "give one of them")

    @property
    def record_file(self) -> Path | None:
        """The manifest that the run writes, a new one or one that it goes on with."""
        return self.manifest or self.resume

    def earlier_records(self) -> dict[Path, Record]:
        """The lines of the run that this one goes on with, by output."""
        there = self.resume is not None and os.path.lexists(self.resume)
        return last_lines(read(self.resume)) if there and self.resume is not None else {}

    def own_files(self) -> Mapping[Path, str]:
        """The files that the run reads or writes besides photos, and what each is.

        Raises RefusedOverwriteError if one would be written over another.
        """
        written = [] if self.record_file is None else [(self.record_file, "the manifest")]
        if self.report is not None:
            part = self.report.with_name(f"{self.report.stem}.part.html")
            written += [(self.report, "the report"), (part, "the report's beginning")]
        read = [] if self.from0 in (None, "-") else [(Path(self.from0 or ""), "the list of names")]
        read += [] if self.c2pa is None else [(self.c2pa[0], "the certificate"), (self.c2pa[1], "the key")]
        for number, (path, what) in enumerate(written):
            for other, is_it in (*written[:number], *read):
                if absolute(path) == absolute(other):
                    raise RefusedOverwriteError(f"{path} would be {is_it} and {what}", "give each a name of its own")
        return dict((*written, *read))
