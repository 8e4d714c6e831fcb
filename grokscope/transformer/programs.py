"""Compiled programs: as many live as a process can hold, and each computes what its functions say now.

A program takes 50 to 180 of the memory maps that Linux gives a process (65,530), and megabytes; JAX lets none go by itself,
and XLA crashes where the maps end. So those used longest ago are let go here, to be made again when they are asked for.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from jax.core import eval_jaxpr

from grokscope.transformer.primitives import Primitive

LIMIT = 96
"""Programs that live at a time: 18,000 memory maps at the most."""

ON_A_CPU = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
"""By itself XLA keeps apart what could be computed at once, of a long text the scores of all chunks of queries: 0.93 GB where
0.10 do, and a third of the time goes to fetching that memory.
"""

COMPILER: dict[str, Any] = {}
"""Options of the compiler, as `jax.jit` takes them: tests, which compile much and compute little, ask for quick work."""

_live: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
"""What a program is for -> the program, the one used longest ago first."""
_lock = threading.RLock()
_told = False


class Program:
    """`jax.jit` of a function that takes edits, for every shape and kind of them; keyword arguments are static, the memory of
    the arguments numbered `given_away` is written over.
    """

    def __init__(self, function: Callable[..., Any], given_away: tuple[int, ...] = ()) -> None:
        self.function, self.__doc__ = function, function.__doc__
        self._given_away = given_away
        self._shapes: dict[Any, list[Any]] = {}

    def __call__(self, *args: Any, **static: Any) -> Any:
        """The function's answer. What a `Map` reads besides its site is read now, not when it was first compiled."""
        args = self._settled(args, static)
        return self.of_kind(args, static)(*args)

    def of_kind(self, args: tuple[Any, ...], static: dict[str, Any]) -> Callable[..., Any]:
        """The program for arguments like these, without a `Map` among them: to look it up takes longer than a small one runs."""
        key = (self, *_kind(args, static))
        with _lock:
            found = _live.get(key)
            if found is None:
                found = _live[key] = self._made(static)
                _let_go()
            _live.move_to_end(key)
        return found

    def lower(self, *args: Any, **static: Any) -> Any:
        """As of `jax.jit`: the program before it is compiled, for those who look into it."""
        return self._made(static).lower(*args)

    def _made(self, static: dict[str, Any]) -> Any:
        options = (ON_A_CPU if jax.default_backend() == "cpu" else {}) | COMPILER
        bound = partial(self.function, **static)
        return jax.jit(bound, donate_argnums=self._given_away, compiler_options=options or None)

    @property
    def live(self) -> int:
        """How many of this function's programs live."""
        with _lock:
            return sum(key[0] is self for key in _live)

    def _settled(self, args: Any, static: dict[str, Any]) -> Any:
        """The arguments with each edit's function as the arithmetic that it does now (`Arithmetic`)."""
        leaves, tree = jax.tree.flatten(args, is_leaf=_is_edit)
        mapped = [n for n, leaf in enumerate(leaves) if _is_edit(leaf) and leaf.fn is not None]
        if not mapped:
            return args
        without = [replace(leaf, fn=None) if n in mapped else leaf for n, leaf in enumerate(leaves)]
        key = _kind(without, static)
        shapes = self._shapes.get(key)
        if shapes is None:
            shapes = self._seen_by(leaves, tree, mapped, static)
            if len(self._shapes) >= LIMIT:
                self._shapes.clear()
            self._shapes[key] = shapes
        for n, seen in zip(mapped, shapes, strict=True):
            arithmetic, constants = Arithmetic.of(leaves[n].fn, seen)
            leaves[n] = replace(leaves[n], fn=arithmetic, constants=constants)
        return jax.tree.unflatten(tree, leaves)

    def _seen_by(self, leaves: list[Any], tree: Any, mapped: list[int], static: dict[str, Any]) -> list[Any]:
        """The shapes and types of what each of the edits numbered `mapped` gets to see."""
        seen: dict[int, Any] = {}

        def look(n: int, *arrays: jax.Array) -> jax.Array:
            seen[n] = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
            return arrays[0]

        looking = [replace(leaf, fn=partial(look, n)) if n in mapped else leaf for n, leaf in enumerate(leaves)]
        args = jax.tree.unflatten(tree, looking)
        jax.eval_shape(partial(self.function, **static), *args)
        return [seen.get(n) for n in mapped]


class Arithmetic:
    """What a Python function does to arrays of given shapes. Equal where it does the same, whatever the function is called."""

    def __init__(self, text: str, jaxpr: Any) -> None:
        self._text, self._jaxpr = text, jaxpr

    @classmethod
    def of(cls, function: Callable[..., Any], shapes: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The arithmetic, and the arrays that it reads besides. Raises TypeError where the answer is not one array."""
        if shapes is None:  # at a site that this run does not come by
            return _nothing, ()
        made, answer = jax.make_jaxpr(lambda *arrays: function(*arrays), return_shape=True)(*shapes)
        if not isinstance(answer, jax.ShapeDtypeStruct):
            raise TypeError(
                f"Map: wanted one array from the function, got {type(answer).__name__}; give back what stands at the site"
            )
        return cls(str(made.jaxpr), made.jaxpr), tuple(made.consts)

    def __call__(self, *arrays: jax.Array) -> jax.Array:
        """The same to other arrays, and behind them those that it reads besides."""
        given = len(self._jaxpr.invars)
        return eval_jaxpr(self._jaxpr, arrays[given:], *arrays[:given])[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arithmetic) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def let_go(most: int = 0) -> None:
    """Let the programs used longest ago go, until no more than `most` live."""
    with _lock:
        while len(_live) > most:
            _live.popitem(last=False)


def _let_go() -> None:
    global _told
    if len(_live) > LIMIT and not _told:
        _told = True
        warnings.warn(
            f"grokscope: {LIMIT} compiled programs live, and from now on the ones used longest ago are let go: what needs "
            "them again waits for the compiler. Numbers given as values of Add, Scale or Replace need no program of their "
            "own; each new function of Map, each capture and each length of text does",
            RuntimeWarning,
            stacklevel=4,
        )
    let_go(LIMIT)


def _kind(args: Any, static: dict[str, Any]) -> tuple[Any, ...]:
    """All of the arguments but their numbers."""
    leaves, tree = jax.tree.flatten(args)
    return (tree, *((x.shape, x.dtype) if hasattr(x, "dtype") else type(x) for x in leaves), *static.values())


def _is_edit(x: Any) -> bool:
    return isinstance(x, Primitive)


def _nothing(x: jax.Array, *_: jax.Array) -> jax.Array:
    return x
