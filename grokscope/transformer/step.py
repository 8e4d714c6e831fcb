"""One more token of each text: a few programs a step, the past written in place, nothing waits for the host.

A group of blocks is one program, since to start one takes as long as a block's arithmetic; the next token is drawn on the device.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from grokscope.block_config import BlockConfig
from grokscope.config import ModelConfig
from grokscope.transformer.attention import PAST, Past, Sequence
from grokscope.transformer.block import block
from grokscope.transformer.forms import pytree
from grokscope.transformer.forward import Seen
from grokscope.transformer.programs import Program
from grokscope.transformer.sampling import draw
from grokscope.transformer.tap import Tap
from grokscope.transformer.to_host import Kept
from grokscope.transformer.unembed import End
from grokscope.transformer.weights import BlockWeights


@pytree
class State:
    """Of each text, B 1: the newest token, its position, whether the text has ended; one that has runs along, unchanged.
    step: how many tokens have been drawn.
    """

    tokens: Array
    positions: Array
    done: Array
    step: Array


def _run_group(
    pasts: tuple[Past, ...], blocks: tuple[BlockWeights, ...], x: Array, seq: Sequence, seen: tuple[Seen, ...],
    *, configs: tuple[BlockConfig, ...], sites: tuple[tuple[str, ...], ...],
) -> tuple[Array, tuple[Past, ...], Kept]:  # fmt: skip
    """Some blocks, one after the other, their pasts with these tokens in them, and what each site kept, of all that have it as
    one array: to bring many home takes longer than to bring one.
    """
    new: list[Past] = []
    kept: dict[str, list[Array]] = {}
    for past, w, edits, config, names in zip(pasts, blocks, seen, configs, sites, strict=True):
        tap = Tap((*names, PAST), *edits)
        x = block(w, x, dataclasses.replace(seq, past=past), config, tap)
        new.append(tap.kept.pop(PAST))
        for site, value in tap.kept.items():
            kept.setdefault(site, []).append(value)
    return x, tuple(new), {site: jnp.stack(values) for site, values in kept.items()}


run_group = Program(_run_group, given_away=(0,))


@Program
def run_next(
    end: End, x: Float[Array, "B 1 D"], state: State, seen: Seen, how: tuple[Array, Array, Array],
    *, config: ModelConfig, sites: tuple[str, ...], greedy: bool,
) -> tuple[State, Array, Kept]:  # fmt: skip
    """The state with one token more, that token (whatever has ended), B, and what the final sites kept; how: a key, temperature,
    top_p.
    """
    tap = Tap(sites, *seen)
    logits = tap("logits", end.logits(tap("final", end.final(x, config)), config))[:, 0]
    key, temperature, top_p = how
    token = draw(logits, jax.random.fold_in(key, state.step), temperature, top_p, greedy=greedy).astype(state.tokens.dtype)
    done = state.done | jnp.isin(token, jnp.asarray(config.eos_ids or (-1,)))[:, None]
    positions = state.positions + ~done
    return State(jnp.where(done, state.tokens, token[:, None]), positions, done, state.step + 1), token, tap.kept
