"""Published loads, checked: how often each expert was chosen in how many tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def checked_loads(
    loads: Mapping[str, np.ndarray], tokens: Mapping[str, int], first: Mapping[str, np.ndarray] | None
) -> tuple[int, ...]:
    """(L, E) of all of them. Raises ValueError, naming the label, for what are no counts of one model."""
    if not loads or set(loads) != set(tokens) or (first is not None and set(first) != set(loads)):
        raise ValueError(f"loads: wanted the same labels in all, got {list(loads)} and {list(tokens)}; name each in both")
    shape = np.shape(next(iter(loads.values())))
    for label, load in loads.items():
        load, heads = np.asarray(load), None if first is None else np.asarray(first[label])
        if heads is not None and (heads.shape != shape or (heads > load).any()):
            raise ValueError(f"first of {label!r}: wanted counts {list(shape)} of at most the loads, got others")
        if load.shape != shape or load.dtype.kind not in "iu" or (load < 0).any() or load.max() > tokens[label]:
            raise ValueError(
                f"loads of {label!r}: wanted counts {list(shape)} of 0 to {tokens[label]} tokens, "
                f"got {load.dtype} {list(load.shape)}, up to {load.max()}; give counts, not shares"
            )
    return shape
