"""Restore old photographs: scratches, fading, blur, noise and faces.

    import oldphoto

    restorer = oldphoto.Restorer.from_pretrained(model="compact")
    photo = oldphoto.read_photo("photo.jpg")
    oldphoto.write_photo(restorer.restore(photo).photo, "restored.jpg")

The names below load their module when first used, so that `import oldphoto` brings in no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BadImageError",
    "ExitCode",
    "FileAccessError",
    "NoInputError",
    "OldphotoError",
    "Options",
    "OutOfMemoryError",
    "Photo",
    "RefusedOverwriteError",
    "Restoration",
    "Restorer",
    "UsageError",
    "WeightsCorruptError",
    "WeightsUnavailableError",
    "__version__",
    "detect_faces",
    "read_photo",
    "restore",
    "side_by_side",
    "write_photo",
    "write_report",
]

if TYPE_CHECKING:
    from oldphoto.compare import side_by_side
    from oldphoto.errors import (
        BadImageError,
        ExitCode,
        FileAccessError,
        NoInputError,
        OldphotoError,
        OutOfMemoryError,
        RefusedOverwriteError,
        UsageError,
        WeightsCorruptError,
        WeightsUnavailableError,
    )
    from oldphoto.faces import detect_faces
    from oldphoto.image import Photo, read_photo, write_photo
    from oldphoto.options import Options
    from oldphoto.pipeline import Restoration, Restorer, restore
    from oldphoto.report import write_report

_MODULE_OF = {
    "Options": "oldphoto.options",
    "detect_faces": "oldphoto.faces",
    "Photo": "oldphoto.image",
    "read_photo": "oldphoto.image",
    "write_photo": "oldphoto.image",
    "Restoration": "oldphoto.pipeline",
    "Restorer": "oldphoto.pipeline",
    "restore": "oldphoto.pipeline",
    "side_by_side": "oldphoto.compare",
    "write_report": "oldphoto.report",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF.get(name, "oldphoto.errors")), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
