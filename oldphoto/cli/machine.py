"""The commands about this machine: `doctor` and `bench`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from oldphoto.cli.flags import AsJson, Device, Model, Precision
from oldphoto.cli.terminal import Downloads, print_json, put, shown, stderr
from oldphoto.errors import UsageError
from oldphoto.options import Options, read_size

if TYPE_CHECKING:
    from oldphoto.weights.sets import SetName


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


def bench(
    sizes: Annotated[str, typer.Option(help="Megapixels, with commas between.")] = "1,4",
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; may be given several times.", show_default=False)
    ] = None,
    model: Annotated[Model, typer.Option(help="Which weight set.")] = Model.COMPACT,
    device: Device = "auto",
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
