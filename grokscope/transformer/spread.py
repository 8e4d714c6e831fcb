"""Weights over a mesh: each device runs what one device would on its own part, and the parts are added up.

Axes of the mesh: "data" texts, "expert" whole experts, "model" the width of each; heads lie along the last two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from grokscope.transformer.forms import Scaled
from grokscope.transformer.unit import Matrices


def _axes(mesh: Mesh, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if mesh.shape.get(name, 1) > 1)


def _texts(mesh: Mesh, batch: int) -> tuple[str, ...] | None:
    """Where texts lie side by side; None where they do not divide: then each device has all."""
    axes = _axes(mesh, "data")
    return axes if axes and batch % mesh.shape["data"] == 0 else None


def through_parts(
    through: Callable[..., Array], matrices: Matrices, x: Float[Array, "B T N P"], chosen: Int[Array, "B T A"],
    gates: Float[Array, "B T A"] | None, wide: str,
) -> Array:  # fmt: skip
    """`through` of each device's experts, of the part of their width that it has, and the sum: ungated B T A Q, or B T Q
    weighted by `gates`, which is far less to add up. wide: which side has the experts' width, "in", "out" or "" (inside).
    """
    mesh = next(m.mesh for m in matrices if m is not None)
    texts, width = _texts(mesh, x.shape[0]), _axes(mesh, "model") or None
    stacks = tuple(m and m.stack for m in matrices)
    specs = tuple(m and jax.tree.unflatten(jax.tree.structure(m.stack), m.specs) for m in matrices)

    def part(stacks: Any, x: Array, chosen: Array, gates: Array | None) -> Array:
        experts = stacks[0].shape[0]
        first = jax.lax.axis_index("expert") * experts if _axes(mesh, "expert") else 0
        mine = jnp.where((chosen >= first) & (chosen < first + experts), chosen - first, experts)
        if wide != "out" and width:  # the last two, whose inputs are the width
            down, bias = stacks[-2:]
            bias = bias if bias is None else jnp.where(jax.lax.axis_index("model") == 0, bias, 0)
            stacks = (*stacks[:-2], _own_scales(down, matrices[-2].stack), bias)
        y = through(stacks, x, mine)
        y = y if gates is None else jnp.einsum("BTA,BTAQ->BTQ", gates, y)
        return jax.lax.psum(y, _axes(mesh, "expert", *([] if wide == "out" else ["model"])))

    in_specs = (specs, P(texts, None, None, width if wide == "in" else None), P(texts), None if gates is None else P(texts))
    out = P(texts, None, None, width) if wide == "out" else P(texts)
    return jax.shard_map(part, mesh=mesh, in_specs=in_specs, out_specs=out, check_vma=False)(stacks, x, chosen, gates)


def _own_scales(part: Any, whole: Any) -> Any:
    """The scales of a device's own inputs, where each device has those of all."""
    if not isinstance(part, Scaled) or part.scales.shape[1] == 1 or part.scales.shape[1] != whole.scales.shape[1]:
        return part
    size = whole.size or whole.shape[1] // whole.scales.shape[1]
    rows = jax.lax.axis_index("model") * part.shape[1] + jnp.arange(part.shape[1])
    return replace(part, scales=part.scales[:, rows // size], size=1)


def over_heads(mesh: Mesh, attend: Callable[..., Array], *args: Array | None) -> Array:
    """`attend` of each device's heads; args: q, k, v (B T heads width), segments (B T), sinks (heads) or None."""
    heads, texts = _axes(mesh, "expert", "model") or None, _texts(mesh, args[0].shape[0])
    of_heads = P(texts, None, heads)
    specs = (of_heads, of_heads, of_heads, P(texts), None if args[4] is None else P(heads))
    return jax.shard_map(attend, mesh=mesh, in_specs=specs, out_specs=of_heads, check_vma=False)(*args)


def heads_divide(mesh: Mesh | None, heads: int) -> bool:
    """Whether so many heads can lie side by side."""
    return mesh is None or heads % math.prod(mesh.shape[a] for a in _axes(mesh, "expert", "model")) == 0
