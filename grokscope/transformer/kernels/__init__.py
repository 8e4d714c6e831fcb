"""Products and attention for GPUs, behind the signatures of experts.py and attention.py.

May import transformer's weights and ops. Read flash.py first, then grouped.py, then hopper.py. The kernels are written in Triton
(called through jax-triton, which the extra `gpu` brings), for any NVIDIA card from Ampere on; in Mosaic for Hopper what wins there.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache

import jax


@cache
def capability() -> int:
    """The compute capability of the GPU times ten, 90 for a Hopper; 0 without one."""
    if jax.default_backend() != "gpu":
        return 0
    return int(float(str(getattr(jax.local_devices()[0], "compute_capability", "0"))) * 10)


@cache
def triton_there() -> bool:
    """Whether this machine has a GPU that runs the Triton kernels, and what calls them."""
    if capability() < 80:
        return False
    found = all(importlib.util.find_spec(name) for name in ("triton", "jax_triton"))
    if not found:
        warnings.warn(
            "grokscope: wanted jax-triton for the kernels of this GPU, found none: experts and attention go through XLA, "
            'several times slower. Install it with pip install "grokscope[gpu]" (Python 3.12 or later)',
            RuntimeWarning,
            stacklevel=2,
        )
    return found
