"""The stages of a restoration, one file each, and their order. Which networks a photo needs is asked here."""

from __future__ import annotations

from collections.abc import Iterable

from oldphoto.options import Options
from oldphoto.stages.blending import Blending
from oldphoto.stages.colour import Colouring
from oldphoto.stages.enlarging import Enlarging
from oldphoto.stages.faces.stage import Faces
from oldphoto.stages.fading import Fading
from oldphoto.stages.filling import Filling
from oldphoto.stages.rebuilding import Rebuilding
from oldphoto.stages.resolution import Resolution
from oldphoto.stages.scratches import Scratches
from oldphoto.stages.stage import Case, Stage
from oldphoto.stages.strength import Strength
from oldphoto.stages.translation import Translation
from oldphoto.weights.sets import SETS, Role, SetName

STAGES: tuple[Stage, ...] = (
    Resolution(),
    Scratches(),
    Filling(),
    Fading(),
    Translation(),
    Strength(),
    Rebuilding(),
    Faces(),
    Colouring(),
    Blending(),
    Enlarging(),
)


def needed_roles(case: Case) -> set[Role]:
    """The roles that some stage needs for such a photo."""
    return {role for stage in STAGES if stage.wanted(case) for role in stage.roles(case)}


def needed_nets(name: SetName, options: Options, large: bool, has_mask: bool = False) -> tuple[str, ...]:
    """The networks one photo needs, and no other, in the order of the set's table.

    large: the photo takes the large-photo path. has_mask: the user brings a mask, so that none need be found.
    """
    roles = needed_roles(Case(options, SETS[name], large, has_mask))
    return tuple(dict.fromkeys(net.name for role, net in SETS[name].nets.items() if role in roles))


def nets_for_all(
    name: SetName, choices: Iterable[Options], large: Iterable[bool] = (False, True), masks: Iterable[bool] = (False,)
) -> tuple[str, ...]:
    """The networks that photos of several kinds need together: every mixture of these options, sizes and masks."""
    kinds = [(size, mask) for size in large for mask in masks]
    needed = (needed_nets(name, options, size, mask) for options in choices for size, mask in kinds)
    return tuple(dict.fromkeys(net for nets in needed for net in nets))


def every_net(name: SetName) -> tuple[str, ...]:
    """Every network of a set that is its own or comes with the package."""
    return tuple(dict.fromkeys(net.name for net in SETS[name].nets.values() if net.home in (name, "compact")))
