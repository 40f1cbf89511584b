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
    "batch",
    "detect_faces",
    "manifest",
    "planning",
    "read_photo",
    "restore",
    "side_by_side",
    "write_photo",
    "write_report",
]

if TYPE_CHECKING:
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
    from oldphoto.files.image import Photo, read_photo, write_photo
    from oldphoto.options import Options
    from oldphoto.pipeline import Restoration, restore
    from oldphoto.records import manifest
    from oldphoto.records.pictures import side_by_side
    from oldphoto.records.report import write_report
    from oldphoto.restorer import Restorer
    from oldphoto.runs import batch, planning
    from oldphoto.stages.faces import detect_faces

_MODULE_OF = {
    "Options": "oldphoto.options",
    "detect_faces": "oldphoto.stages.faces",
    "Photo": "oldphoto.files.image",
    "read_photo": "oldphoto.files.image",
    "write_photo": "oldphoto.files.image",
    "Restoration": "oldphoto.pipeline",
    "Restorer": "oldphoto.restorer",
    "restore": "oldphoto.pipeline",
    "side_by_side": "oldphoto.records.pictures",
    "write_report": "oldphoto.records.report",
}
# Modules of a whole run, by the names that Python users know.
_MODULES = {
    "batch": "oldphoto.runs.batch",
    "manifest": "oldphoto.records.manifest",
    "planning": "oldphoto.runs.planning",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return import_module(_MODULES[name])
    value: object = getattr(import_module(_MODULE_OF.get(name, "oldphoto.errors")), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
