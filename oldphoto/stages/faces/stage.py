"""Faces: found, cut out, enhanced, and numbered as `oldphoto faces` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from numpy.typing import NDArray

from oldphoto.arrays import Pixels
from oldphoto.files.colour import eight_bits
from oldphoto.machine import memory
from oldphoto.options import Options
from oldphoto.stages.changes import ALL, ChangeUse
from oldphoto.stages.faces.detectors import Detector, cnn_detector, frontal_detector
from oldphoto.stages.faces.enhancing import cut_faces, enhance_faces
from oldphoto.stages.faces.face import Face
from oldphoto.stages.faces.finding import detect_faces, joined
from oldphoto.stages.faces.landmarks import Landmarks
from oldphoto.stages.faces.proposals import load_finder
from oldphoto.stages.stage import Case, Clock, Plain, State
from oldphoto.stages.strength import estimate, given_use, lessened
from oldphoto.weights.sets import Role

if TYPE_CHECKING:
    from oldphoto.models.loaded import Models
    from oldphoto.models.spade import FaceGenerator

# How many faces the generator is given at once: it prepares the kernels of its coarse scales once for all of them.
FACES_AT_ONCE = 4
# Bytes that dlib takes to look for faces and at them, besides its files.
DETECTOR_MEMORY = 64 << 20


class Faces(Plain):
    """Enhances the faces that the options want; all that were found are in the result."""

    name: str = "faces"
    clock: Clock = "faces"
    doing = "enhancing faces"
    without = "--no-faces"

    def wanted(self, case: Case) -> bool:
        """See Stage."""
        return case.options.enhances_faces

    def roles(self, case: Case) -> tuple[Role, ...]:
        """See Stage."""
        roles: list[Role] = [generator_role(case), "landmarks", "face_finder"]
        if given_use(case, "face_strength", case.options.face_strength) is None:
            roles.append("face_strength")
        if case.options.face_detector == "cnn":
            roles.append("face_detector")
        return tuple(roles)

    def memory(self, case: Case, models: Models) -> int:
        """See Stage. Where no faces were met yet, the files of the networks as well: they are not in memory before they
        are used."""
        if models.device.type != "cpu":
            return 0
        generator = cast("FaceGenerator", models.net(generator_role(case)))
        work = DETECTOR_MEMORY + generator.memory(face_size(case))
        if models.is_made("landmarks"):
            return work
        return work + models.mapped_bytes() + models.path("landmarks").stat().st_size

    def run(self, state: State, case: Case, models: Models) -> None:
        """See Stage. Faces are looked for twice: in the photo as it came, which gives the numbers that `oldphoto faces`
        lists without restoring anything, and in the restored one, which shows faces that damage had hidden."""
        options = case.options
        memory.line.make_room(self.memory(case, models))
        pixels = eight_bits(state.pixels)
        detector = detector_for(options, models)
        found = joined(detect_faces(state.seen, detector), detect_faces(pixels, detector))
        faces = cut_faces(pixels, found, models.made("landmarks", Landmarks), face_size(case)) if found else []
        wanted = [face for face, seen in zip(faces, found, strict=True) if options.wants_face(face.number, seen.side)]
        enhanced = {face.number: face for face in enhanced_faces(wanted, models, case)}
        state.faces = tuple(enhanced.get(face.number, face) for face in faces)
        missing = [number for number in options.only_faces + options.skip_faces if number > len(faces)]
        state.warnings += [f"there is no face {number}: {len(faces)} were found" for number in missing]

    def generated(self, state: State) -> bool:
        """See Stage."""
        return any(face.after is not None for face in state.faces)


def face_size(case: Case) -> Literal[256, 512]:
    """Side of the face crop in pixels: the user's, or what suits the set and the photo's size."""
    return case.options.face_size or case.models.face_sizes[case.large]


def generator_role(case: Case) -> Role:
    """The role of the generator for crops of that size."""
    return "face_generator_512" if face_size(case) == 512 else "face_generator_256"


def detector_for(options: Options, models: Models) -> Detector:
    """Return the detector that the options ask for, with the networks of these models."""
    finder = models.made("face_finder", load_finder)
    if options.face_detector == "cnn":
        return models.made("face_detector", lambda path: cnn_detector(path, finder))
    return frontal_detector(finder)


def enhanced_faces(faces: Sequence[Face], models: Models, case: Case) -> list[Face]:
    """These faces, cut out at `face_size`, enhanced by as much as the options say, or as the set judges right."""
    if not faces:
        return []

    def used(before: NDArray[np.uint8], made: NDArray[np.float32]) -> tuple[NDArray[np.float32], ChangeUse]:
        use = given_use(case, "face_strength", case.options.face_strength)
        if use is None:
            rounded: Pixels = np.asarray(np.rint(made), np.uint8)
            use = estimate(before, rounded, None, models.estimator("face_strength"))
        if use == ALL:
            return made, use
        old = before.astype(np.float32)
        return old + lessened(made - old, use), use

    return enhance_faces(faces, models.net(generator_role(case)), str(models.device), FACES_AT_ONCE, used)
