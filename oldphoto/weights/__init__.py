"""weights.lock -> the verified path of a weight file. The only network code; imports no torch and prints nothing.

A file is used only after its sha256 has been found to be what weights.lock says, each time anew: nothing beside the
file is believed, not even what an earlier run found. No server chooses where its bytes go or how many are taken: they
are fetched into a file of ours whose name and size come from weights.lock. Where files lie:

    published   $OLDPHOTO_WEIGHTS   a folder of the user's own, looked at first, never written to
                cache_folder()      whatever was fetched or imported
                the hub's cache     what huggingface_hub fetched for another program; looked at, never filled
                a Python package    the 68-point landmarks, where `face_recognition_models` is installed
    compact     inside this package

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are read when a function is called.
"""

from oldphoto.weights.cache import (
    Copy,
    Removed,
    cache_folder,
    cached,
    copies_of,
    hub_cache,
    override_folder,
    remove,
    verify,
)
from oldphoto.weights.importing import Imported, import_archive
from oldphoto.weights.lock import (
    CNN_DETECTOR,
    Progress,
    Source,
    WeightFile,
    lock_path,
    read_lock,
    relock_compact,
)
from oldphoto.weights.obtaining import Model, WeightSet, obtain, offline_wanted, resolve

__all__ = [
    "CNN_DETECTOR",
    "Copy",
    "Imported",
    "Model",
    "Progress",
    "Removed",
    "Source",
    "WeightFile",
    "WeightSet",
    "cache_folder",
    "cached",
    "copies_of",
    "hub_cache",
    "import_archive",
    "lock_path",
    "obtain",
    "offline_wanted",
    "override_folder",
    "read_lock",
    "relock_compact",
    "remove",
    "resolve",
    "verify",
]
