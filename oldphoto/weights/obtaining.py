"""Have the files that are needed: at hand, or fetched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from oldphoto.errors import FileAccessError, WeightsUnavailableError
from oldphoto.weights.cache import cached, copies_of, delete, each_copy, locked, verified
from oldphoto.weights.fetching import CONNECT_TIMEOUT_SECONDS, fetch, instead_of
from oldphoto.weights.lock import Progress, WeightFile, corrupt, hash_of, read_lock
from oldphoto.weights.sets import SETS, SetName

Model = Literal["auto", "published", "compact"]
# `auto` has the compact set to fall back on, so it asks once and does not wait for a hub that stays silent.
HURRIED_CONNECT_TIMEOUT_SECONDS = 3.0


@dataclass(frozen=True)
class WeightSet:
    """Verified paths by net, and the sha256 each was found to have.

    note: one line for the user where the set is not the one they may expect.
    """

    name: SetName
    files: dict[str, Path]
    note: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)


def resolve(
    model: Model,
    nets_for: Callable[[SetName], Iterable[str]],
    *,
    offline: bool = False,
    progress: Progress | None = None,
    files: Iterable[WeightFile] | None = None,
) -> WeightSet:
    """Verified paths for every net that `nets_for` names.

    "auto" takes the published set where all its files are cached or can be fetched, else the compact one, and says so
    in `note`. A wrong hash is an error there too. `files` stands in for the lock.
    """
    known = {(file.set, file.net): file for file in (read_lock() if files is None else files)}

    def obtain_all(name: SetName, connect_timeout: float, note: str | None = None) -> WeightSet:
        paths, hashes = {}, {}
        for net in nets_for(name):
            file = known.get((SETS[name].home_of(net), net))
            if file is None:
                raise WeightsUnavailableError(f"weights.lock has no {name} {net}", "install oldphoto again")
            paths[net] = obtain(file, offline=offline, progress=progress, connect_timeout=connect_timeout)
            hashes[net] = hash_of(paths[net]) if file.also else file.sha256
        return WeightSet(name, paths, note, hashes)

    if model != "auto":
        return obtain_all(model, CONNECT_TIMEOUT_SECONDS)
    try:
        return obtain_all("published", HURRIED_CONNECT_TIMEOUT_SECONDS)
    except (WeightsUnavailableError, FileAccessError) as error:
        note = f"using the compact weights, since the published ones can't be had: {error}"
        return obtain_all("compact", CONNECT_TIMEOUT_SECONDS, note)


def obtain(
    file: WeightFile,
    *,
    offline: bool = False,
    progress: Progress | None = None,
    connect_timeout: float = CONNECT_TIMEOUT_SECONDS,
) -> Path:
    """The path of a verified copy: one at hand, else fetched from the first source that has it.

    A wrong copy in the caches is deleted and fetched again. `connect_timeout`, in seconds, is how long each host may
    take to answer at all. Raises WeightsUnavailableError, WeightsCorruptError, FileAccessError (disk full, read-only).
    """
    path = verified(each_copy(file))
    if path is not None:
        return path
    if file.set == "compact":
        raise WeightsUnavailableError(f"{file.path} is missing from the package", "install oldphoto again")
    for copy in copies_of(file):
        # Looked for again: by now another process may have fetched a right one.
        if not copy.right and copy.place in ("cache", "hub"):
            delete(copy.path)
            if offline_wanted(offline):
                raise corrupt(file, copy.path, copy.found, "it was deleted; fetch or import it again")
    if offline_wanted(offline):
        raise WeightsUnavailableError(
            f"{file.path} is not cached, and the network is switched off",
            "run `oldphoto weights download` where there is a network, `oldphoto weights import`, or "
            f"{instead_of(file)}",
        )
    with locked(file):
        # Another process may have fetched it while this one waited.
        return cached(file) or fetch(file, progress, connect_timeout)


def offline_wanted(offline: bool = False) -> bool:
    """Whether the network must not be touched, by the caller's word or by HF_HUB_OFFLINE."""
    return offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
