"""Have the weights that a run needs, and load the networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oldphoto.cli.terminal import Downloads

if TYPE_CHECKING:
    from oldphoto.cli.progress import RunProgress
    from oldphoto.runs.batch import Work
    from oldphoto.runs.planning import Planned
    from oldphoto.runs.request import RunRequest
    from oldphoto.weights import WeightSet
    from oldphoto.weights.sets import SetName


def find_weights(photos: Sequence[Planned] | None, request: RunRequest, progress: RunProgress) -> WeightSet:
    """Have the weights that these photos need and no others; all, where the photos are not known yet."""
    from oldphoto import weights
    from oldphoto.runs import planning
    from oldphoto.stages import nets_for_all

    options = request.options

    def nets(name: SetName) -> tuple[str, ...]:
        # Photos of both kinds may need the nets of both paths.
        return nets_for_all(name, [options], planning.large_or_not(photos, options), [bool(request.mask)])

    offline = request.offline or request.dry_run
    with Downloads(progress.console, quiet=progress.quiet) as downloads:
        weight_set = weights.resolve(request.model, nets, offline=offline, progress=downloads.report)
    if weight_set.note is not None:
        progress.say(weight_set.note)
    return weight_set


def load_on_node(weight_set: WeightSet, request: RunRequest) -> Work:
    """Load the networks on a machine that has its own copies of the weights, or fetches them."""
    from oldphoto import weights

    return load_models(weights.resolve(weight_set.name, lambda name: list(weight_set.files)), request)


def load_models(weight_set: WeightSet, request: RunRequest, tell: Callable[[str], None] | None = None) -> Work:
    """Load the networks, once, and give what restores photos. tell: is told what each photo is going to take."""
    from oldphoto.models.loaded import Models
    from oldphoto.runs import batch

    models = Models.load(weight_set, request.device, request.precision)
    signed = request.c2pa is not None
    return batch.work_with(
        models, request.options, provenance=request.provenance, signed=signed, tell=tell, jobs=request.jobs
    )
