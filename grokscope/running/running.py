"""A run over texts: cut into calls that fit the device, layer by layer through the model, recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from grokscope.config import ModelConfig
from grokscope.devices.memory import device_memory, free_memory
from grokscope.prompt import Prompt, bucket
from grokscope.running.resuming import OnDisk, fingerprint, weights_of
from grokscope.sites import Capture
from grokscope.trace.recorder import Recorder
from grokscope.transformer.attention import Sequence as Tokens
from grokscope.transformer.forward import Call, Run, Streams, run_end, run_layers
from grokscope.transformer.primitives import LoweredEdits, Place
from grokscope.transformer.site_edits import Edit
from grokscope.transformer.tap import Selection

if TYPE_CHECKING:
    from grokscope.running.loaded import Loaded

TOKENS_IN_A_CALL = 8192
"""More go in several calls: enough to keep a device busy, few enough for what the experts of one layer need beside it."""


def run(
    model: Loaded,
    config: ModelConfig,
    prompts: Sequence[Prompt],
    capture: Capture,
    edits: Sequence[Edit],
    resume: str | Path | None = None,
    recorder: type[Recorder] = Recorder,
) -> list[Recorder]:
    """Every text of every prompt through the model, layer by layer for all of them; a recorder for each prompt.

    `config` is the model's own as the edits change it (their top-k). recorder: what keeps a prompt's arrays.
    """
    recorders = [recorder(config, capture, p.lengths.tolist(), config.router.top_k, once=True) for p in prompts]
    calls = [
        call for p, r in zip(prompts, recorders, strict=True) for call in calls_of(model, config, p, capture, edits, r)
    ]
    about = None if resume is None else _about(model, config, prompts, capture, calls)
    with _streams(model, calls, resume, about) as streams, _memory_explained(model, prompts, len(calls)):
        run_layers(model.weights, calls, streams)
        for batch, call in enumerate(calls):
            run_end(model.weights, streams.get(batch), call.run, call.record)
    return recorders


def calls_of(
    model: Loaded, config: ModelConfig, encoded: Prompt, capture: Capture, edits: Sequence[Edit], recorder: Recorder
) -> Iterator[Call]:
    """The calls of one prompt: no more texts in each than fit; the recorder gets what they keep."""
    width = bucket(encoded.tokens)
    positions = np.broadcast_to(np.arange(width), (encoded.batch, width))
    place = Place(config, positions, positions, encoded.lengths, encoded.tokens)
    ids, segments = encoded.padded(width), encoded.segments(width)
    number = -(-encoded.batch // max(1, TOKENS_IN_A_CALL // width))
    size = -(-encoded.batch // number)
    selection = Selection(
        None,
        None if capture.heads is None else np.asarray(capture.heads),
        None if capture.experts is None else np.asarray(capture.experts),
    )
    for first in range(0, encoded.batch, size):
        rows = slice(first, first + size)
        at = positions[rows]
        record = partial(recorder.record, positions=at, key_positions=at, first_row=first)
        how = Run(config, jnp.dtype(model.dtype), capture, LoweredEdits(edits, place, rows).at, selection)
        seq = Tokens(model.on_device(at), model.on_device(segments[rows]), mesh=model.mesh, one_text=True)
        yield Call(model.on_device(ids[rows]), seq, how, record)


@contextmanager
def _streams(
    model: Loaded, calls: Sequence[Call], resume: str | Path | None, about: dict[str, Any] | None
) -> Iterator[Streams]:
    """Where the residual streams wait for the next layer: on the device, in host memory, on disk."""
    tokens = sum(call.tokens.size for call in calls)
    size = tokens * model.config.d_model * jnp.dtype(model.dtype).itemsize
    if resume is not None:
        with closing(OnDisk(Path(resume), len(calls), about)) as streams:
            yield streams
    elif len(calls) == 1 or (device_memory() is not None and size < device_memory() // 16):
        yield Streams()
    elif size < free_memory() // 2:
        pinned = None if device_memory() is None else jax.local_devices()[0]
        yield Streams(pinned and jax.sharding.SingleDeviceSharding(pinned, memory_kind="pinned_host"))
    else:
        with tempfile.TemporaryDirectory(prefix="grokscope-") as folder, closing(OnDisk(Path(folder), len(calls))) as streams:
            yield streams


def _about(
    model: Loaded, config: ModelConfig, prompts: Sequence[Prompt], capture: Capture, calls: Sequence[Call]
) -> dict[str, Any]:
    """What must be the same for a run to be taken up again."""
    if jax.process_count() > 1:
        raise ValueError("resume: wanted one process, got several; leave resume out, or split the prompts between processes")
    lowered = [call.run.edits_at(layer) for call in calls for layer in (None, *range(config.num_layers))]
    edits = [fingerprint(np.asarray(leaf)) for leaf in jax.tree.leaves(lowered)]
    kinds = [(p.site, p.kind) for ps in lowered for p in ps]
    if any(p.fn is not None for ps in lowered for p in ps):
        raise ValueError("resume: wanted edits that can be told from others, got Map, a function; leave resume out")
    return model.provenance(config, capture, ()) | {
        "weights": weights_of(model),
        "ids": [fingerprint(p.ids) for p in prompts], "lengths": [p.lengths.tolist() for p in prompts], "calls": len(calls),
        "edits": fingerprint(np.frombuffer(repr((edits, kinds)).encode(), np.uint8)),
    }  # fmt: skip


@contextmanager
def _memory_explained(model: Loaded, prompts: Sequence[Prompt], calls: int) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        there, texts, tokens = device_memory(), sum(p.batch for p in prompts), max(p.tokens for p in prompts)
        streamed = "" if model.is_streamed else ', weights="streamed" in load (two layers are on the device at a time)'
        raise MemoryError(
            f"device: wanted room for {texts} x {tokens} tokens in {calls} calls beside the weights, the "
            f"device{'' if there is None else f' of {there / 1e9:.0f} GB'} is full. What would fit: about "
            f"{tokens // 2} tokens{streamed}, or fewer captured sites, layers or heads"
        ) from error
