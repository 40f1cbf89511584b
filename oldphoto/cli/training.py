"""The commands that teach and judge networks: `train`, `evaluate` and `degrade`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from oldphoto.cli.flags import AsJson, Device, Model
from oldphoto.cli.terminal import print_json, put, shown, stderr
from oldphoto.errors import UsageError


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
