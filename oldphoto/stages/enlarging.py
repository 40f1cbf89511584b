"""The finished photo made larger, by the network that rebuilds photos."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from oldphoto.machine.memory import limit, line
from oldphoto.stages.rebuilding import network, tile_bytes
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models


class Enlarging(Plain):
    """Enlarges the photo as the user says. Everything in the state but `pixels` keeps its size."""

    name: str = "enlarging"
    clock: Clock = "enlarging"
    doing = "enlarging the photo"
    without = "a smaller --upscale"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.upscale is not None

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        return ("rebuilder",)

    def memory(self, case: Case, models: Models) -> int:
        """See Stage. The enlarged photo, and where its colours are not sRGB it and its original in both."""
        assert case.options.upscale is not None
        return (4 if case.converted else 1) * case.options.upscale**2 * case.copy_bytes + tile_bytes(models)

    def run(self, state: State, case: Case, models: Models) -> int | None:
        """See Stage; how many times larger it was made."""
        from oldphoto.models.rebuilding import rebuilt
        from oldphoto.models.srvgg import FACTOR

        factor = case.options.upscale
        assert factor is not None
        # Of a photo that was rebuilt the network has made four pixels of each one of its detail.
        scale = max(1.0, state.native_scale / FACTOR) if state.rebuilt else state.native_scale
        room = limit(case.options.max_memory) - line.held() - factor**2 * case.copy_bytes
        state.pixels = rebuilt(state.pixels, network(models), scale, models.device, factor, room)
        return factor

    def generated(self, state: State) -> bool:
        """See Stage."""
        return state.pixels.shape != state.seen.shape

    def record(self, fact: int | None) -> dict[str, Any]:
        """See Stage."""
        return {"enlarged": fact}

    def words(self, entry: Mapping[str, Any]) -> list[tuple[str, str]]:
        """See Stage."""
        factor = entry.get("enlarged")
        return [] if factor is None else [("Enlarged", f"{factor} times")]
