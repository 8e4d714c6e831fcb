"""From a host's memory to one GPU: cut into parts that threads send side by side, or by way of pinned memory.

The first is for weights that stay: pinned memory takes longer to get than to use once. The second is for weights that come
again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.transformer.forms import pytree

PART = 2**26
"""Bytes that a thread sends at a time: of a large array in one piece one thread alone fills what the bus takes from."""
THREADS = 8


@pytree
class Parts:
    """An array in the order of its memory, cut along its first axis; `axes` turn the whole into what it stands for, on the
    device, a hundred times as fast as here.
    """

    parts: list[Any]
    axes: tuple[int, ...] = field(metadata={"static": True})


def pinned(tree: Any) -> Any:
    """Its arrays in memory that the GPU reads by itself, five times as fast; several at a time, which one thread cannot fill."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="pinned_host")

    def put(leaf: Any) -> Any:
        lying, axes = _as_it_lies(leaf)
        return _named([jax.block_until_ready(jax.device_put(lying, place))], axes)

    leaves, structure = jax.tree.flatten(tree)
    with ThreadPoolExecutor(THREADS, "pin") as threads:
        return jax.tree.unflatten(structure, list(threads.map(put, leaves)))


def sent(tree: Any) -> Any:
    """Its arrays on the device, those from ordinary memory in parts; `as_used` puts them together."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="device")
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda x: isinstance(x, Parts))
    lying = [_as_it_lies(leaf) if isinstance(leaf, np.ndarray) else None for leaf in leaves]
    with ThreadPoolExecutor(THREADS, "send") as threads:

        def put(part: Any) -> Any:
            return jax.block_until_ready(jax.device_put(part, place))

        coming = [None if x is None else [threads.submit(put, part) for part in _cut(x[0])] for x in lying]
        there = [
            jax.device_put(leaf, place) if x is None else _named([part.result() for part in parts], x[1])
            for leaf, x, parts in zip(leaves, lying, coming, strict=True)
        ]
    return jax.tree.unflatten(structure, there)


def as_used(tree: Any) -> Any:
    """What was sent, every array whole and as its einsum wants it."""
    return jax.tree.map(
        lambda x: _whole(x.parts, axes=x.axes) if isinstance(x, Parts) else x, tree, is_leaf=lambda x: isinstance(x, Parts)
    )


@partial(jax.jit, static_argnames="axes")
def _whole(parts: list[jax.Array], *, axes: tuple[int, ...]) -> jax.Array:
    return jnp.concatenate(parts).transpose(axes)


def _as_it_lies(leaf: Any) -> tuple[Any, tuple[int, ...]]:
    """The array with its axes in the order of memory, and what turns them back."""
    order = sorted(range(np.ndim(leaf)), key=lambda axis: -leaf.strides[axis]) if isinstance(leaf, np.ndarray) else []
    return (leaf.transpose(order) if order else leaf), tuple(np.argsort(order).tolist())


def _cut(lying: np.ndarray) -> Iterator[np.ndarray]:
    if lying.nbytes <= PART:
        return iter([lying])
    rows = max(1, PART // (lying.nbytes // len(lying)))
    return (lying[at : at + rows] for at in range(0, len(lying), rows))


def _named(parts: list[Any], axes: tuple[int, ...]) -> Any:
    """One part that lies as it is used is the array itself."""
    return parts[0] if len(parts) == 1 and list(axes) == sorted(axes) else Parts(parts, axes)
