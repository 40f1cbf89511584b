"""A photo that is larger than its detail, rebuilt at its native scale. The network's work is in
`oldphoto.models.rebuilding`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from oldphoto.arrays import Pixels
from oldphoto.files.colour import bands
from oldphoto.machine.memory import limit, line
from oldphoto.stages.resolution import SHARP
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.models.rebuilding import Net


class Rebuilding(Plain):
    """Makes a photo crisp and clean that is larger than its detail; a sharp one stays as it is."""

    name: str = "rebuilding"
    clock: Clock = "rebuilding"
    doing = "rebuilding the photo"
    without = "--look faithful"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.rebuilds

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("rebuilder",)

    def memory(self, case: Case, models: Models) -> int:
        """See Stage. One tile at a time can do."""
        return tile_bytes(models)

    def run(self, state: State, case: Case, models: Models) -> bool:
        """See Stage; whether it was done."""
        from oldphoto.models.rebuilding import rebuilt

        if state.native_scale < SHARP:
            return False
        room = limit(case.options.max_memory) - line.held() - case.copy_bytes
        made = rebuilt(state.pixels, network(models), state.native_scale, models.device, room=room)
        if case.options.strength is not None:
            made = mixed(state.pixels, made, case.options.strength)
        state.pixels, state.rebuilt = made, True
        return True

    def generated(self, state: State) -> bool:
        """See Stage. Detail finer than the photo had is drawn by a network that has learned how photos look."""
        return state.rebuilt

    def record(self, fact: bool | None) -> dict[str, Any]:
        """See Stage."""
        return {"rebuilt": bool(fact)}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        return [("Rebuilt", "at its native scale")] if entry.get("rebuilt") else []


def network(models: Models) -> Net:
    """Return the network that rebuilds photos."""
    return cast("Net", models.net("rebuilder"))


def tile_bytes(models: Models) -> int:
    """Bytes that rebuilding takes for one tile; 0 where the tile is not in the processor's memory."""
    from oldphoto.models.rebuilding import tile_memory

    return tile_memory(network(models)) if models.device.type == "cpu" else 0


def mixed(before: Pixels, after: Pixels, share: float) -> Pixels:
    """So much, 0..1, of what became of a photo (H, W, 3), and the rest of what it was."""
    made = np.empty_like(after)
    for rows in bands(after):
        old = np.asarray(before[rows], np.float32)
        made[rows] = np.rint(old + np.float32(share) * (after[rows] - old))
    return made
