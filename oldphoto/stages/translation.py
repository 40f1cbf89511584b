"""The translation of a photo: its latents, aged, to those of a photo that is not. The networks' work is in
`oldphoto.models.translating`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.models.mapping import Mapping
    from oldphoto.models.translating import TranslationNets, TranslationPlan
    from oldphoto.models.vae import Vae


class Translation(Plain):
    """Takes noise, blur, and damage that is not filled out of a photo."""

    name: str = "translation"
    clock: Clock = "translation"

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        if not case.damaged:
            return "old_vae", "mapping", "clean_vae"
        return "old_vae", "mapping_damaged_large" if case.large else "mapping_damaged", "clean_vae_damaged"

    def run(self, state: State, case: Case, models: Models) -> TranslationPlan:
        """See Stage."""
        from oldphoto.models.translating import translate_photo

        state.before = state.pixels
        if state.filled and case.options.only_damaged:
            return state.way
        nets = translation_nets(case, models)
        done = translate_photo(state.pixels, state.holes, nets, models.device, state.way, trusted=state.trusted)
        state.pixels = done.pixels
        state.warnings += done.warnings
        return done.plan


def translation_nets(case: Case, models: Models) -> TranslationNets:
    """The networks for such a photo."""
    from oldphoto.models.translating import TranslationNets

    old, mapping, clean = (models.net(role) for role in Translation().roles(case))
    return TranslationNets(cast("Vae", old), cast("Mapping", mapping), cast("Vae", clean))


def planned_translation(case: Case, models: Models, most: int, beside: int) -> TranslationPlan:
    """Plan how such a photo is translated, the process staying below `most` bytes; beside: see plan_translation."""
    from oldphoto.models.translating import plan_translation

    size, depth = (case.height, case.width), 16 if case.converted else case.depth
    nets = translation_nets(case, models)
    return plan_translation(size, depth, case.damaged, nets, models.device, most, beside=beside)
