"""What a run kept, on its way to the host while the next layers run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any

import jax
from jaxtyping import Array

from grokscope.transformer.programs import Program

Kept = dict[str, Array]
"""What one call kept: its sites' names and their arrays."""
Put = Callable[[Kept], None]

TOGETHER = 2**22
"""Bytes that set out in one program: to start one costs a GPU's host as much as many a copy."""
WAITING = 2**28
"""Bytes that may wait for their copies while the next layers run."""
FEW = 2**16
"""Bytes that are not worth a program."""


@Program
def run_home(kept: Any, *, home: Any) -> Any:
    """The same arrays in `home`, a place in the host's memory that the device itself can write."""
    return jax.device_put(kept, home)


class Late:
    """Puts away what calls kept when later ones are under way; the copies have begun by then, small ones with one another."""

    def __init__(self) -> None:
        self._here: list[tuple[Put, Kept]] = []
        self._under_way: deque[tuple[Put, Kept, int]] = deque()

    def __call__(self, put: Put, kept: Kept, stays: Collection[str] = ()) -> None:
        """Take one call's arrays, which may still be computed; `put` gets them when they have come. Those of the sites in
        `stays` are wanted where they are.
        """
        staying = {site: x for site, x in kept.items() if site in stays}
        going = {site: x for site, x in kept.items() if site not in stays}
        self._here.append((lambda come: put(staying | come), going))
        if jax.default_backend() != "gpu" or sum(size_of(going) for _, going in self._here) >= TOGETHER:
            self._set_out()
        while len(self._under_way) > 1 and sum(size for *_, size in self._under_way) > WAITING:
            self._arrive()

    def finish(self) -> None:
        """Everything is put away when this returns."""
        self._set_out()
        while self._under_way:
            self._arrive()

    def _set_out(self) -> None:
        coming = gathered([kept for _, kept in self._here])
        self._under_way.extend((put, kept, size_of(kept)) for (put, _), kept in zip(self._here, coming, strict=True))
        self._here.clear()

    def _arrive(self) -> None:
        put, kept, _ = self._under_way.popleft()
        put(kept)


def gathered(kept: Any) -> Any:
    """Whole arrays in the place of these, on their way to the host, also of those whose parts lie on other hosts.

    One GPU writes them into memory that is locked for it, beside its computing; any other copy holds its host up, on some
    machines at a fortieth of the speed.
    """
    arrays = [x for x in jax.tree.leaves(kept) if isinstance(x, jax.Array)]
    if not all(x.is_fully_addressable for x in arrays):
        from jax.experimental.multihost_utils import process_allgather

        return jax.tree.map(lambda x: process_allgather(x, tiled=True), kept)
    devices = set().union(*(x.devices() for x in arrays))
    if jax.default_backend() == "gpu" and len(devices) == 1 and size_of(kept) > FEW:
        return run_home(kept, home=jax.sharding.SingleDeviceSharding(devices.pop(), memory_kind="pinned_host"))
    for x in arrays:
        x.copy_to_host_async()
    return kept


def size_of(kept: Any) -> int:
    """Bytes."""
    return sum(x.nbytes for x in jax.tree.leaves(kept))
