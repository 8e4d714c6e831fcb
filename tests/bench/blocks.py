"""What a block of the tests' small model costs before it runs, and what planning its rows costs beside NumPy's stable sort.

    python -m tests.bench.blocks [--rounds 60]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.transformer import programs
from grokscope.transformer.dispatch import plan_blocks
from grokscope.transformer.forward import run_block
from tests.conftest import make

SHAPES = ((2048, 8, 64), (16_384, 8, 512), (65_536, 128, 512), (65_536, 256, 512))
"""Rows, experts, places in a block."""


def best(act: Callable[[], Any]) -> float:
    def once() -> float:
        start = time.perf_counter()
        act()
        return time.perf_counter() - start

    return min(once() for _ in range(15))


def compiling(rounds: int) -> None:
    programs.COMPILER["xla_backend_optimization_level"] = 0  # as most of the tests
    given: list[Any] = []
    real = run_block.of_kind
    run_block.of_kind = lambda args, static: (given.append((args, static)), real(args, static))[1]  # type: ignore[method-assign]
    make().trace(np.random.default_rng(7).integers(3, 97, (3, 11)), ["router.logits"])
    args, static = given[0]
    took: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        made, clock = run_block._made(static), [time.process_time()]
        traced = made.trace(*args)
        clock.append(time.process_time())
        lowered = traced.lower()
        clock.append(time.process_time())
        lowered.compile()
        clock.append(time.process_time())
        for n in range(3):
            took[n].append(clock[n + 1] - clock[n])
    said = ", ".join(f"{name} {1e3 * statistics.median(t):.0f}" for name, t in zip(("traced", "lowered", "compiled"), took, strict=True))
    print(f"a block, processor's ms, medians of {rounds}: {said}")


def planning() -> None:
    for rows, experts, size in SHAPES:
        chosen = np.random.default_rng(0).integers(0, experts + 1, rows, dtype=np.int32)
        plan, there = jax.jit(partial(plan_blocks, num_experts=experts, size=size)), jnp.asarray(chosen)
        jax.block_until_ready(plan(there))
        ours, sort = best(lambda p=plan, x=there: jax.block_until_ready(p(x))), best(lambda x=chosen: np.argsort(x, kind="stable"))
        print(f"{rows:,} rows of {experts} experts: {1e3 * ours:.2f} ms, {ours / sort:.1f} of NumPy's sort")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    jax.config.update("jax_enable_compilation_cache", False)
    planning()
    compiling(parser.parse_args().rounds)
