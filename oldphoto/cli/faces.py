"""The command `faces`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from oldphoto.cli.flags import ChosenDetector, FaceDetector
from oldphoto.cli.terminal import Downloads, print_error, print_json, put, shown, stderr
from oldphoto.errors import ExitCode, OldphotoError
from oldphoto.records.manifest import error_facts

if TYPE_CHECKING:
    from oldphoto.runs.batch import Listing


def list_faces(
    inputs: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Photos, folders and glob patterns.", show_default=False)
    ],
    draw: Annotated[
        str | None,
        typer.Option(metavar="FILE|DIR", help="Also write the photos with their faces numbered.", show_default=False),
    ] = None,
    face_detector: ChosenDetector = FaceDetector.HOG,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace drawn photos that exist.")] = False,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Search folders within folders.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per photo on stdout.")] = False,
) -> None:
    """List the faces of photos by the numbers that `restore --only-face` and `--skip-face` take."""
    from oldphoto.runs import batch, planning

    if draw is None:
        photos = planning.find_photos(inputs, recursive=recursive)
    else:
        existing: Literal["overwrite", "refuse"] = "overwrite" if overwrite else "refuse"
        photos = planning.plan(inputs, draw, recursive=recursive, existing=existing).photos
    detector = None
    if face_detector is FaceDetector.CNN:
        from oldphoto import weights
        from oldphoto.stages.faces import cnn_detector

        (file,) = (file for file in weights.read_lock() if file.net == weights.CNN_DETECTOR)
        with Downloads(stderr(), quiet=as_json) as downloads:
            detector = cnn_detector(weights.obtain(file, progress=downloads.report))
    errors: list[OldphotoError] = []
    for listing in batch.list_faces(photos, draw=draw is not None, detector=detector):
        source, error = listing.planned.source, listing.error
        if error is not None:
            print_error(error, stderr(), "" if source.name in str(error) else f"{shown(source)}: ")
            errors.append(error)
        if as_json:
            print_json(listing_facts(listing, drawn=draw is not None))
        elif error is None:
            put(f"{shown(source)}: {len(listing.faces) or 'no'} face{'s'[: len(listing.faces) != 1]}")
            for number, face in enumerate(listing.faces, 1):
                left, top, right, bottom = (round(edge) for edge in face.bounds)
                turned = f", turned {round(face.turn)} degrees" if face.turn else ""
                where = f"{left},{top} to {right},{bottom}, {round(face.side)} pixels{turned}"
                put(f"  {number:3}  {where}, score {face.score:.2f}")
    if errors:
        raise typer.Exit(errors[0].exit_code if len(photos) == 1 else ExitCode.SOME_FAILED)


def listing_facts(listing: Listing, *, drawn: bool) -> dict[str, Any]:
    """The faces of one photo for JSON: boxes are left, top, right, bottom in pixels."""
    facts: dict[str, Any] = {"source": str(listing.planned.source)}
    if listing.error is not None:
        return facts | {"error": error_facts(listing.error)}
    facts |= {"drawn": str(listing.planned.target)} if drawn else {}
    return facts | {
        "width": listing.size and listing.size[0],
        "height": listing.size and listing.size[1],
        "faces": [
            {
                "number": number,
                "box": [round(edge, 1) for edge in face.bounds],
                "size": round(face.side, 1),
                "score": round(face.score, 3),
                "turn": round(face.turn, 1),
            }
            for number, face in enumerate(listing.faces, 1)
        ],
    }
