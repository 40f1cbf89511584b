"""The Python API: models, and a way to call them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from oldphoto import weights
from oldphoto.arrays import Mask
from oldphoto.files.image import Photo
from oldphoto.machine import threads
from oldphoto.machine.workers import Flight
from oldphoto.models.loaded import Models, Precision
from oldphoto.options import Options
from oldphoto.pipeline import Restoration, restore
from oldphoto.stages import every_net, nets_for_all
from oldphoto.weights.sets import SetName

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

    Image = Photo | PillowImage | NDArray[np.uint8] | NDArray[np.uint16]


class Restorer:
    """Models and a way to call them: the Python API."""

    def __init__(self, models: Models) -> None:
        self.models = models

    @staticmethod
    def from_pretrained(
        model: weights.Model = "auto",
        device: str = "auto",
        *,
        precision: Precision = "fp32",
        offline: bool = False,
        progress: weights.Progress | None = None,
        options: Options | None = None,
    ) -> Restorer:
        """Have the weights ready and verified, fetching them where they are missing and `offline` is not set.

        options: have only what these need; None has every network of the set. model, device and precision as for the
        command. Raises WeightsUnavailableError, WeightsCorruptError, UsageError.
        """

        def nets(name: SetName) -> tuple[str, ...]:
            if options is None:
                return every_net(name)
            kinds = (False, True) if options.hr == "auto" else (options.hr == "on",)
            return nets_for_all(name, [options], kinds, masks=(False, True))

        weight_set = weights.resolve(model, nets, offline=offline, progress=progress)
        return Restorer(Models.load(weight_set, device, precision))

    def restore(
        self,
        image: Image,
        options: Options | None = None,
        mask: Mask | None = None,
    ) -> Restoration:
        """Restore a Photo, a Pillow image or an array: (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, uint8 or uint16."""
        if isinstance(image, np.ndarray):
            image = Photo.from_array(image)
        elif not isinstance(image, Photo):
            image = Photo.from_pillow(image)
        return restore(image, self.models, options or Options(), mask)

    def restore_all(
        self,
        images: Iterable[Image],
        options: Options | None = None,
        *,
        jobs: int | None = None,
    ) -> Iterator[Restoration]:
        """Restore each image, and give the results in their order; so many are in work at once, each with its part of
        the processor.

        jobs: see Models.places. No more than so many images are taken ahead of what was given out. An error ends it.
        """
        places, whole = self.models.places(jobs), torch.get_num_threads()
        coming = iter(images)
        started = given = 0
        done: dict[int, Restoration] = {}

        def one(number: int, image: Image, at_once: int) -> tuple[int, Restoration]:
            threads.share(whole, at_once)
            return number, self.restore(image, options)

        with Flight[tuple[int, Restoration]]() as flight:
            try:
                while True:
                    ready = list(islice(coming, places - (started - given)))
                    at_once = flight.busy + len(ready)
                    for image in ready:
                        flight.start(partial(one, started, image, at_once))
                        started += 1
                    if given == started:
                        return
                    if (landed := flight.next()) is not None:
                        done[landed[0]] = landed[1]
                    while given in done:
                        yield done.pop(given)
                        given += 1
            finally:
                torch.set_num_threads(whole)  # of this thread, and of new ones
