"""Grok-1 as released: a directory of pickles `tensor00000_000`, one a parameter, without names.

The i-th file is the i-th leaf of the reference's parameter tree in its sorted order, in which layer 10 comes before layer
2: all layers have the same shapes, so a numeric order loads without any error and is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.checkpoints.pickled_array import read_arrays
from grokscope.config import ModelConfig, RouterConfig
from grokscope.disk.reading import read_json
from grokscope.fields import MOST
from grokscope.harmless import listed, told
from grokscope.presets import GROK_1
from grokscope.transformer.forms import Scaled
from grokscope.transformer.stream import Streamed
from grokscope.transformer.weights import CONTRACTED, BlockWeights, ModelWeights, block_from

_LAYER_MOE = {"moe.gate": "moe/linear/w", "moe.down": "moe/linear_1/w", "moe.up": "moe/linear_v/w"}
_LAYER_DENSE = {"moe.gate": "linear/w", "moe.down": "linear_1/w", "moe.up": "linear_v/w"}
_LAYER_REST = {
    "attn.k": "multi_head_attention/key/w",
    "attn.o": "multi_head_attention/linear/w",
    "attn.q": "multi_head_attention/query/w",
    "attn.v": "multi_head_attention/value/w",
    "attn_norm_in": "rms_norm/scale",
    "attn_norm_out": "rms_norm_1/scale",
    "moe_norm_in": "rms_norm_2/scale",
    "moe_norm_out": "rms_norm_3/scale",
    "moe.router": "router/w",
}
EMBED, FINAL_NORM = "language_model/in_out_embed/embeddings", "language_model/rms_norm/scale"
ROW_GROUPS = 8
"""Of the scales of attn.o and moe.down: the shards over which the release was quantised."""


def layer_names(config: ModelConfig) -> dict[str, str]:
    """Our dotted field -> the reference's name inside `transformer/decoder_layer_{i}/`."""
    names = {**(_LAYER_DENSE if config.is_dense else _LAYER_MOE), **_LAYER_REST}
    if config.is_dense:
        del names["moe.router"]
    return names


def file_names(config: ModelConfig) -> dict[str, str]:
    """The reference's parameter name -> its file, in the checkpoint's order."""
    layers = [
        f"transformer/decoder_layer_{i}/{n}" for i in range(config.num_layers) for n in layer_names(config).values()
    ]
    # A module's own leaves and its submodules sort as the reference's nested dicts do: by module path, then by name.
    ordered = sorted([EMBED, FINAL_NORM, *layers], key=lambda name: tuple(name.rsplit("/", 1)))
    return {name: f"tensor{i:05d}_000" for i, name in enumerate(ordered)}


def config_from_reference(values: dict[str, Any]) -> ModelConfig:
    """A config in the reference's own field names (emb_size, key_size, widening_factor, ...)."""
    wanted = {
        "vocab_size",
        "sequence_len",
        "emb_size",
        "key_size",
        "num_q_heads",
        "num_kv_heads",
        "num_layers",
        "widening_factor",
    }
    if missing := sorted(wanted - set(values)):
        raise ValueError(f"config.json: wanted the reference's fields, missing {missing}")
    width, widening, e = values["emb_size"], values["widening_factor"], values.get("num_experts", 1)
    kept = values.get("num_selected_experts", 1)
    for name, value in {"emb_size": width, "widening_factor": widening, "num_experts": e, "num_selected_experts": kept}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST:
            raise ValueError(f"{name}: wanted a positive number up to {MOST:,}, got {told(value)}")
    rounded = -(-(int(widening * width) * 2 // 3) // 8) * 8
    return ModelConfig(
        vocab_size=values["vocab_size"],
        d_model=width,
        num_layers=values["num_layers"],
        num_heads=values["num_q_heads"],
        num_kv_heads=values["num_kv_heads"],
        d_head=values["key_size"],
        d_expert=values.get("ffn_size", rounded),
        max_tokens=values["sequence_len"],
        attention_scale=values.get("attn_output_multiplier", 1.0),
        embed_scale=values.get("embedding_multiplier_scale", 1.0),
        logit_scale=values.get("output_multiplier_scale", 1.0),
        router=RouterConfig(num_experts=e, top_k=kept if e > 1 else 1),
        eos_id=values.get("eos_token"),
        pad_id=values.get("pad_token"),
    )


def weights_from(config: ModelConfig, get: Callable[[str], dict[str, np.ndarray]]) -> ModelWeights:
    """Weights from a function that gives each parameter by the reference's name, as `read_arrays` gives it.

    A layer's parameters are asked for when the layer is: 770 files are more than some systems let a process hold open.
    """
    names, shapes = layer_names(config), config.block(0).shapes

    def block(layer: int) -> BlockWeights:
        def array(field: str) -> Any:
            if field not in shapes:
                return None
            name = f"transformer/decoder_layer_{layer}/{names[field]}"
            return _translated(field, shapes[field], get(name), name)

        return block_from(array)

    embed = _translated("embed", (config.vocab_size, config.d_model), get(EMBED), EMBED)
    norm = _translated("final_norm", (config.d_model,), get(FINAL_NORM), FINAL_NORM)
    return ModelWeights(embed, Streamed(range(config.num_layers), block), norm)


def _translated(field: str, shape: tuple[int, ...], arrays: dict[str, np.ndarray], name: str) -> Any:
    """One parameter in our layout: the reference merges heads and widths, (in, out)."""
    if problem := _problem(field, shape, arrays):
        raise CheckpointError(f"{name}: {problem}")
    if "array" in arrays:
        return arrays["array"].reshape(shape)
    lead, rows = CONTRACTED[field]
    scales = arrays["scales"]
    groups = scales.shape[lead]
    return Scaled(
        arrays["weight"].reshape(shape), scales.reshape(*shape[:lead], groups, *shape[lead + rows :]), lead, rows
    )


def _problem(field: str, shape: tuple[int, ...], arrays: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the types and the shapes of one parameter, if anything."""
    types = {key: array.dtype.name for key, array in arrays.items()}
    if "scales" in arrays and field not in CONTRACTED:
        return f"wanted plain numbers, got {types['weight']} with scales"
    if (types.pop("weight", "int8") != "int8") or "int8" in types.values():
        got = ", ".join(array.dtype.name for array in arrays.values())
        return f"wanted floating-point numbers, or int8 with floating-point scales, got {got}"
    lead, rows = CONTRACTED.get(field, (0, 1))
    merged = (*shape[:lead], int(np.prod(shape[lead : lead + rows])))
    if shape[lead + rows :]:
        merged = (*merged, int(np.prod(shape[lead + rows :])))
    got = next(iter(arrays.values()))
    if got.shape not in (merged, shape):
        return f"wanted shape {merged}, got {got.shape}"
    if "scales" in arrays:
        scales = arrays["scales"].shape
        groups = scales[lead] if len(scales) == len(merged) else 0
        if not groups or merged[lead] % groups or (*merged[:lead], groups, *merged[lead + 1 :]) != scales:
            return f"wanted scales for groups of the {merged[lead]} rows of {merged}, got {scales}"
    return None


def recognises(path: Path) -> bool:
    """Whether this directory holds the released format, whole or not."""
    return next(path.glob("tensor[0-9][0-9][0-9][0-9][0-9]_000"), None) is not None


def read_config(path: Path) -> ModelConfig:
    """config.json in the directory or beside it, in our field names or the reference's; else, for a directory with as many
    files as the release has or an embedding of its shape, Grok-1's own.
    """
    for place in (path / "config.json", path.parent / "config.json"):
        if place.exists():
            try:
                values = read_json(place)
                ours = values.get("model", values) if isinstance(values, dict) else values
                is_ours = not isinstance(ours, dict) or "d_model" in ours
                return ModelConfig.from_dict(ours) if is_ours else config_from_reference(values)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{place}: wanted a model's config, got something else ({error})") from error
    files = sum(1 for p in path.iterdir() if p.name.startswith("tensor"))
    if files == len(file_names(GROK_1)) or _has_embedding_of(path, GROK_1):
        return GROK_1
    raise CheckpointError(
        f"{path}: wanted config.json beside the tensors, or Grok-1's {len(file_names(GROK_1))} files, found {files}; pass config="
    )


def _has_embedding_of(path: Path, config: ModelConfig) -> bool:
    try:
        return read_arrays(path / "tensor00000_000")["array"].shape == (config.vocab_size, config.d_model)
    except (OSError, KeyError, CheckpointError):
        return False


def _field(config: ModelConfig, name: str) -> tuple[str, tuple[int, ...]]:
    """Our field and its shape, of a parameter by the reference's name."""
    table = {EMBED: ("embed", (config.vocab_size, config.d_model)), FINAL_NORM: ("final_norm", (config.d_model,))}
    if name in table:
        return table[name]
    field = next(ours for ours, theirs in layer_names(config).items() if theirs == name.split("/", 2)[2])
    return field, config.block(0).shapes[field]


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every missing, extra, truncated, hostile or mis-shaped file, a line each. Reads headers only."""
    files = file_names(config)
    present = {p.name for p in path.iterdir() if p.name.startswith("tensor")}
    yield from (f"{file} ({name}): missing" for name, file in files.items() if file not in present)
    extra = sorted(present - set(files.values()))
    yield from (f"{name}: not part of this model ({len(files)} files)" for name in extra)
    for name, file in files.items():
        if file in present:
            try:
                problem = _problem(*_field(config, name), read_arrays(path / file))
            except CheckpointError as error:
                problem = str(error).removeprefix(f"{path / file}: ")
            if problem:
                yield f"{file} ({name}): {problem}"


def load(path: Path, config: ModelConfig) -> ModelWeights:
    """The weights of a released checkpoint, mapped from its files. Raises CheckpointError with every problem found."""
    if found := list(problems(path, config)):
        of = len(file_names(config))
        raise CheckpointError(f"{path}: wanted {of} files of a release, {len(found)} are not as they should be:{listed(found)}")
    files = file_names(config)
    return weights_from(config, lambda name: read_arrays(path / files[name]))


def describe(path: Path, config: ModelConfig) -> tuple[list[int], dict[str, Any]]:
    """(the layers in the order of their files, the arrays of layer 0 and of no layer by our names, mapped), for `inspect`.

    Files that cannot be understood are left out: `problems` names them.
    """
    files = file_names(config)
    order = dict.fromkeys(int(n.split("/")[1].rsplit("_", 1)[1]) for n in files if n.startswith("transformer/"))
    first = {f"transformer/decoder_layer_0/{name}" for name in layer_names(config).values()}
    arrays: dict[str, Any] = {}
    for name in (n for n in files if n in first | {EMBED, FINAL_NORM}):
        field, shape = _field(config, name)
        try:
            arrays[field] = _translated(field, shape, read_arrays(path / files[name]), name)
        except (OSError, CheckpointError):
            continue
    ours = [*config.block(0).shapes, "embed", "final_norm"]
    return list(order), {field: arrays[field] for field in ours if field in arrays}
