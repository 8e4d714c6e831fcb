"""What a run says of itself while it goes: lines on the screen, and the same in log.jsonl."""

from __future__ import annotations

import json
import time
from typing import IO, Any

import jax
import numpy as np

from grokscope.train.loss import bits_per_byte
from grokscope.train.recipe import Recipe
from grokscope.transformer.weights import ModelWeights

EARLY = 5
"""Steps after which a run says how long it will take."""

Documents = list[tuple[np.ndarray, int, str]]


class Progress:
    """The clock and the log of a run from the step `first` on."""

    def __init__(self, log: IO[str], recipe: Recipe, first: int, heldout: Documents | None) -> None:
        self._log, self._recipe, self._first, self._heldout = log, recipe, first, heldout
        self._started = self._clock = self._compiled = time.monotonic()
        self._tokens = 0

    @property
    def minutes(self) -> float:
        """Since the start."""
        return (time.monotonic() - self._started) / 60

    def after(self, step: int, steps: int, tokens: int, report: dict[str, Any]) -> None:
        """A step is under way; at the first, which compiles, and at EARLY it is waited for."""
        self._tokens += tokens
        done = step + 1 - self._first
        if done == 1:
            jax.block_until_ready(report)
            self._compiled = time.monotonic()
        elif done == EARLY and step + 1 < steps:
            jax.block_until_ready(report)
            left = (steps - step - 1) * (time.monotonic() - self._compiled) / (EARLY - 1) / 60
            print(f"step {step + 1:,} of {steps:,}: at this pace {left:,.1f} minutes left", flush=True)

    def line(self, step: int, steps: int, report: dict[str, Any], measured: ModelWeights | None) -> None:
        """Loss, load and speed; with `measured` the held-out bits per byte of these weights."""
        row = {"step": step + 1, "of": steps, "nats": float(report["nats"]), "soft": float(report["soft"])}
        row |= {"least": float(report["load"].min()), "most": float(report["load"].max())}
        now = time.monotonic()
        row["tokens_per_second"], self._tokens, self._clock = self._tokens / (now - self._clock), 0, now
        if self._heldout and measured is not None:
            by_domain = bits_per_byte(measured, self._heldout, self._recipe)
            row |= {"bits_per_byte": float(np.mean(list(by_domain.values()))), "by_domain": by_domain}
            self._clock = time.monotonic()
        left = {"minutes_left": (steps - step - 1) * (now - self._started) / (step + 1 - self._first) / 60}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in (row | left).items()}), flush=True)
        self._log.write(json.dumps(row) + "\n")
        self._log.flush()
