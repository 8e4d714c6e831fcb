"""A sweep as tasks of a Ray cluster: one a shard, each a process with a model of its own; the counters add up.

For those who have a cluster. On one machine `Model.sweep` is as fast: its products use all cores.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from grokscope.model.loading import load
from grokscope.sweeps.corpus import files, read_documents

if TYPE_CHECKING:
    from grokscope.counters.counters import RoutingCounters

RETRIES = 3
"""How often a task is started anew whose process or machine died. One that raised an error is not."""


PROXIES = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
ALONE = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all listens on 127.0.0.1 alone,
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about what is to change,
    **PROXIES,  # and clouds are not asked whether this is theirs (169.254.169.254), which Ray does without reports too
}
"""What the processes of a cluster on this machine alone are begun with; the tasks get the user's own proxies."""


def sweep_on_ray(
    model: str | Path,
    source: Any,
    labels: Any = None,
    *,
    shards: int,
    rows: tuple[str | Path, float] | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> RoutingCounters:
    """`load(model, **options).sweep(source, labels, ...)` by `shards` tasks of Ray; to the byte what one process counts.

    model, source, resume and the folder of `rows` are paths that every machine of the cluster sees; the source may be an
    iterable that Ray can send. resume: a directory, in it one for each shard; a task that died goes on there, without it
    that shard starts again, and either way nothing is counted twice. Each task takes one CPU, and one GPU where the cluster
    has any; machines of one kind, or their numbers round otherwise.

    The cluster is the one that `ray.init` was called for, else that of RAY_ADDRESS, else one of this machine alone, which ends with
    the sweep, listens on the loopback and talks to nobody else: usage statistics are off (see `ALONE`; Ray that was imported
    before listens on the machine's address). Raises ImportError without Ray, ChildProcessError for a cluster or a task that
    does not live, else as `sweep` does.
    """
    if shards < 1:
        raise ValueError(f"shards: wanted 1 or more, got {shards}; name how many tasks share the documents")
    if str(source) == "-":
        raise ValueError("source: wanted one that every task can read, got standard input; write it to a file")
    if isinstance(source, str | Path):
        source = str(Path(source).absolute())
        files(source)  # a wrong path is told before anything starts
    model = str(Path(model).absolute()) if Path(model).is_dir() else str(model)
    work = None if resume is None else Path(resume).absolute()
    sample = None if rows is None else (Path(rows[0]).absolute(), rows[1])

    def one(number: int) -> RoutingCounters | None:
        if next(islice(read_documents(source, labels), number, None), None) is None:
            return None
        place = None if work is None else work / f"shard-{number:05d}-of-{shards:05d}"
        shard = (number, shards)
        return load(model, **options).sweep(source, labels, rows=sample, resume=place, shard=shard, progress=False)

    with cluster() as ray:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(one)
        parts = _gathered(ray, [task.remote(number) for number in range(shards)])
    if not parts:
        raise ValueError("sweep: wanted at least one document, got none; look at the source")
    return reduce(operator.add, parts)


def _gathered(ray: Any, waiting: list[Any]) -> list[RoutingCounters]:
    """What the tasks return, as they end; their own errors, and ChildProcessError for one that died too often."""
    parts = []
    with tqdm(total=len(waiting), unit="shard", desc="sweep on Ray", delay=1, disable=None) as bar:
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                parts += ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise ChildProcessError(
                    f"sweep: wanted every task to end, one died {RETRIES + 1} times ({str(error).splitlines()[0][:200]}); "
                    "look at its machine's memory, then run the same command again: with resume it goes on"
                ) from error
            bar.update()
    return [part for part in parts if part is not None]


@contextmanager
def cluster(**options: Any) -> Iterator[Any]:
    """The module ray, with a cluster; one that is begun here ends here. options: for `ray.init`."""
    alone = "RAY_ADDRESS" not in os.environ
    before = {name: os.environ.get(name) for name in ALONE}
    os.environ.update(ALONE if alone else {})
    try:
        import ray

        begun = not ray.is_initialized()
        if begun:
            proxies = {name: before[name] or "" for name in PROXIES}
            own = {"include_dashboard": False, "runtime_env": {"env_vars": proxies}} if alone else {}
            address = os.environ.get("RAY_ADDRESS", "local")
            ray.init(address, log_to_driver=False, logging_level="error", **{**own, **options})
    except ImportError as error:
        raise ImportError("ray: wanted it for a sweep on a cluster, it is not installed; pip install 'grokscope[ray]'") from error
    except Exception as error:  # Ray raises this very class where a process of its own does not start in 30 s
        raise ChildProcessError(
            f"ray: wanted a cluster, got none ({str(error).splitlines()[0][:200]}); try when the machine is less busy, or "
            "begin one with `ray start` and name it in RAY_ADDRESS"
        ) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
