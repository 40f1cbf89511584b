"""The commands that teach and judge networks: `train`, `evaluate` and `degrade`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from oldphoto.cli.flags import AsJson, Device, Model
from oldphoto.cli.terminal import print_json, put, shown, stderr
from oldphoto.errors import UsageError
from oldphoto.training import STAGE_NAMES

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.weights.sets import SetName


class Nets(StrEnum):
    """Which architecture is trained."""

    COMPACT = "compact"
    PUBLISHED = "published"


Data = Annotated[
    Path, typer.Option("--data", help="Folder with clean/, old/, damage/ and faces/ (a train/ folder in each is used).")
]


def train(
    stage: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(STAGE_NAMES['compact'])}; in this order. With --nets published: "
            f"{', '.join(STAGE_NAMES['published'])}. all: every one but landmarks."
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
    from oldphoto.training.train import train as run
    from oldphoto.training.train import train_all

    recipe: dict[str, Any] = {"steps": steps, "batch": batch, "size": size, "rate": rate, "seed": seed}
    recipe["minutes"] = minutes
    with TrainingProgress(stage) as progress:
        if stage != "all":
            report = partial(progress.report, stage)
            files = run(stage, data, output, nets=nets.value, start=start, device=device, report=report, **recipe)
        elif start is not None:
            raise UsageError("all stages cannot go on from one folder", "name one stage with --start")
        else:
            files = train_all(data, output, nets=nets.value, device=device, report=progress.report, **recipe)
    for file in files:
        put(shown(file))


class TrainingProgress:
    """Shows how a stage gets on: one bar on a terminal, elsewhere a line a report."""

    def __init__(self, stage: str) -> None:
        self.console = stderr()
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.progress.add_task(shown(stage), total=None, losses="")

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def report(self, name: str, row: dict[str, float | int | str]) -> None:
        """Show a row of figures of a stage: `step`, `of`, `seconds` and its losses."""
        losses = " ".join(f"{k} {v}" for k, v in row.items() if k not in ("step", "of", "seconds"))
        self.progress.update(
            self.task, description=shown(name), completed=float(row["step"]), total=float(row["of"]), losses=losses
        )
        if not self.console.is_terminal:
            self.console.print(Text(f"{shown(name)} {row['step']}/{row['of']} {row['seconds']} s {losses}"))


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
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="No more than this many photos.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score a weight set: on real photos with damage labelled by hand (--labels), or on photos that are degraded here,
    beside the degraded input and the best classical tools (--damage and --tuning)."""
    check_judging(photos, labels, (damage, tuning), choosing=bool(only) or threshold is not None)
    console = stderr()

    def report(line: str) -> None:
        console.print(Text(line))

    models = judged_models(model, device)
    if labels is not None:
        from oldphoto.training.evaluate import judge_labels

        judged = judge_labels(models, labels, photos[0], tuple(only or ("",)), threshold, limit, report)
        if as_json:
            print_json(judged)
        else:
            put("\n".join(label_lines(judged)))
        return
    from oldphoto.training.evaluate import evaluate as run

    assert damage is not None
    assert tuning is not None
    facts = run(models, photos, damage, tuning, limit=limit, report=report)
    if as_json:
        print_json(facts)
    else:
        put("\n".join(score_lines(facts)))


def check_judging(
    photos: Sequence[Path], labels: Path | None, drawn: tuple[Path | None, Path | None], *, choosing: bool
) -> None:
    """Raise UsageError unless either labels or drawn damage is given, with what belongs to it.

    drawn: the folders of damage overlays and of photos to tune on. choosing: whether some of the labels are chosen.
    """
    if labels is not None and any(drawn):
        raise UsageError("--labels is for real damage, --damage and --tuning for drawn", "give one or the others")
    if labels is None and not all(drawn):
        raise UsageError("there is nothing to score by", "give --labels, or --damage and --tuning")
    if labels is None and choosing:
        raise UsageError("--only and --threshold choose among labelled photos and masks", "give --labels, too")
    if labels is not None and len(photos) != 1:
        raise UsageError("the paths of labels start from one folder", "give one")


def judged_models(model: Model, device: str) -> Models:
    """Load the networks that scoring takes."""
    from oldphoto import weights
    from oldphoto.models.loaded import Models
    from oldphoto.stages import nets_for_all
    from oldphoto.training.evaluate import PLAIN, SCRATCHED

    def nets(name: SetName) -> tuple[str, ...]:
        return nets_for_all(name, [PLAIN, SCRATCHED], large=[False], masks=[False, True])

    return Models.load(weights.resolve(model.value, nets), device)


def score_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines of `evaluate --damage`, one for each method and case."""
    lines = [f"{facts['photos']} photos; colour shift of undamaged ones {facts['colour_shift']} (mean CIE dE2000)"]
    lines.append(f"scratches: {facts['scratches']}")
    for case, rows in facts["scores"].items():
        lines.append(case)
        for method, score in rows.items():
            figures = f"PSNR {score['psnr']:6.2f} dB  SSIM {score['ssim']:.4f}  GMSD {score['gmsd']:.4f}"
            lines.append(f"  {method:26} {figures}  lowest PSNR {score['lowest']:.2f} dB")
    return lines


def label_lines(judged: Mapping[str, Any]) -> list[str]:
    """Return the lines of `evaluate --labels`, one for each kind of damage and one for all."""

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
