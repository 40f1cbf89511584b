"""The same batch on a pool of Ray workers, each of which loads the networks once.

A worker reads, restores, and writes the output under a hidden name beside its place. This process alone writes the
manifest and then gives the output its name: whatever becomes of a worker, a photo is recorded once, and no output is
without its line. Needs the package ray (`oldphoto[ray]`), and folders that all machines see under the same paths.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oldphoto.errors import FileAccessError, OldphotoError, OutOfMemoryError, RefusedOverwriteError, UsageError
from oldphoto.files.image import DEFAULT_MAX_PIXELS, hidden_name
from oldphoto.machine.disk import move
from oldphoto.records.manifest import Record, absolute
from oldphoto.runs.batch import Outcome, Summary, Work, failed, remove_left_over, restore_file
from oldphoto.runs.planning import Planned

# A photo during which so many workers died is what kills them.
TRIES = 3
# Below this a worker has too few cores to be worth the memory of its networks.
CPUS_A_WORKER = 4


@dataclass(frozen=True)
class Pool:
    """address: of a cluster that runs, None for one on this machine alone. workers: None for what the cluster holds:
    one a graphics card, or where there are none, one for every CPUS_A_WORKER cores.
    """

    address: str | None = None
    workers: int | None = None


@dataclass
class _Task:
    planned: Planned
    tries: int = 0
    staged: Planned | None = field(default=None)


def run(
    photos: Iterable[Planned],
    load: Callable[[], Work],
    pool: Pool,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    look_room: int | None = None,
    keep: Callable[[Record], None] | None = None,
    sign: Callable[[Path, Record], None] | None = None,
    on_start: Callable[[Planned], None] = lambda planned: None,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """As batch.run, on a cluster; the outcomes come in the order in which photos are done.

    load, sign: are sent to the workers, so they must be picklable; `load` is called once in each. A photo whose worker
    dies is given to another, and has failed when it has cost TRIES workers.
    Raises UsageError where ray is missing or the cluster cannot be reached.
    """
    ray = _connected(pool)
    outcomes: list[Outcome] = []
    waiting = deque(_Task(planned) for planned in photos)
    running: dict[Any, tuple[Any, _Task]] = {}

    def done(outcome: Outcome) -> None:
        if outcome.error is not None and keep is not None:
            keep(outcome.record)
        outcomes.append(replace(outcome, look=None))
        on_done(outcome)

    try:
        count, start = _worker_start(ray, pool, len(waiting))
        idle = [start(load, sign) for _ in range(count)]
        while waiting or running:
            while waiting and idle:
                task = waiting.popleft()
                if task.planned.problem is not None:
                    done(failed(task.planned, task.planned.problem))
                    continue
                worker = idle.pop()
                task.tries += 1
                task.staged = _staged(task.planned)
                on_start(task.planned)
                running[worker.restore.remote(task.staged, max_pixels, look_room)] = worker, task
            if not running:
                continue
            [finished], _ = ray.wait(list(running), num_returns=1)
            worker, task = running.pop(finished)
            try:
                outcome = ray.get(finished)
                idle.append(worker)
            except ray.exceptions.RayActorError:
                idle.append(start(load, sign))
                remove_left_over([task.planned])
                if task.tries < TRIES:
                    waiting.appendleft(task)
                    continue
                advice = "it may need more memory than a worker has: restore it alone, or with fewer --workers"
                error = OutOfMemoryError(f"{TRIES} workers died while they restored it", advice)
                done(failed(task.planned, error))
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error  # weights that are missing or damaged
            done(_committed(task.planned, outcome, keep))
    except KeyboardInterrupt:
        return Summary(tuple(outcomes), interrupted=True)
    finally:
        ray.shutdown()
        remove_left_over(task.planned for _, task in running.values())
    return Summary(tuple(outcomes), interrupted=False)


def _connected(pool: Pool) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of a run is told to anybody
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs the package ray", "pip install 'oldphoto[ray]'") from error
    here: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 100_000_000}  # paths go through it alone
    if pool.workers is not None:
        here["num_cpus"] = max(pool.workers, os.cpu_count() or 1)
    try:
        # Workers find their modules where this process does.
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(_module_folders())}}
        choice = here if pool.address is None else {"address": pool.address}
        ray.init(log_to_driver=False, logging_level="ERROR", runtime_env=environment, **choice)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = pool.address or "this machine"
        raise UsageError(f"there is no Ray cluster at {where}: {error}", "check --ray-address") from error
    return ray


def _module_folders() -> list[str]:
    package = str(Path(__file__).resolve().parents[2])
    return [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _worker_start(ray: Any, pool: Pool, photos: int) -> tuple[int, Callable[..., Any]]:
    """How many workers the run has, and what starts one."""
    has = ray.cluster_resources()
    cores, cards = int(has.get("CPU", 1)), int(has.get("GPU", 0))
    count = min(pool.workers or cards or max(1, cores // CPUS_A_WORKER), max(1, photos))
    threads = max(1, cores // count)
    worker = ray.remote(num_cpus=threads, num_gpus=1 if count <= cards else 0)(_Worker)
    return count, lambda load, sign: worker.remote(load, sign, threads)


class _Worker:
    """Lives in a process of its own, on any machine of the cluster."""

    def __init__(self, load: Callable[[], Work], sign: Callable[[Path, Record], None] | None, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
        self.load, self.sign = load, sign
        self.work: Work | None = None

    def restore(self, planned: Planned, max_pixels: int | None, look_room: int | None) -> Outcome:
        if self.work is None:
            self.work = self.load()
        return restore_file(planned, self.work, max_pixels, look_room, sign=self.sign, place=False)


def _staged(planned: Planned) -> Planned:
    """The same photo with absolute paths, and a hidden target beside the one it will have."""
    target = absolute(planned.target)
    names = ("source", "mask", "mask_target", "faces_target", "comparison")
    paths: dict[str, Any] = {name: absolute(path) for name in names if (path := getattr(planned, name)) is not None}
    return replace(planned, target=hidden_name(target), **paths)


def _committed(planned: Planned, outcome: Outcome, keep: Callable[[Record], None] | None) -> Outcome:
    """The outcome under the photo's own names, once its line is written and its output in its place."""
    record, part = outcome.record, outcome.planned.target
    record["output"]["path"] = str(planned.target)
    if outcome.error is not None:
        return Outcome(planned, record, outcome.error)
    try:
        if not planned.replaces and os.path.lexists(planned.target):
            raise RefusedOverwriteError(
                f"{planned.target} has come to exist meanwhile", "is another run writing there?"
            )
        if keep is not None:
            keep(record)
        for hidden, path in outcome.beside:
            hidden.replace(path)
        move(part, planned.target, replace=planned.replaces)
    except (OSError, OldphotoError) as error:
        remove_left_over([planned])
        known = error if isinstance(error, OldphotoError) else None
        cause = known or FileAccessError(f"cannot write {planned.target}: {error}", "check its folder")
        return failed(planned, cause, record)
    return Outcome(planned, record, look=outcome.look)
