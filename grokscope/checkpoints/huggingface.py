"""Mixtral as the Hugging Face hub has it: config.json and safetensors, whole or in shards, translated by a table of names.

The files come from strangers: only config.json, the index and safetensors headers are read, code beside them (`auto_map`,
*.py) and pickles (*.bin) never are. Arrays are views of the mapped files in our layout; only experts that lie apart are
copied, into the stack of the layer that is asked for. Rotary halves are ours, so no head is permuted.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.huggingface_config import json_object, read_config
from grokscope.checkpoints.mapped_safetensors import map_arrays, read_header
from grokscope.checkpoints.pickled_array import CheckpointError
from grokscope.config import ModelConfig
from grokscope.transformer.weights import CONTRACTED, BlockWeights, ModelWeights, block_from, block_shapes

__all__ = ["Layers", "download", "is_hub_id", "load", "problems", "read_config", "recognises"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("BF16", "F16", "F32")
EMBED, FINAL_NORM, UNEMBED = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYER = {
    "attn.q": "self_attn.q_proj.weight", "attn.k": "self_attn.k_proj.weight", "attn.v": "self_attn.v_proj.weight",
    "attn.o": "self_attn.o_proj.weight", "attn_norm_in": "input_layernorm.weight",
    "moe_norm_in": "post_attention_layernorm.weight",
}  # fmt: skip
_APART = _LAYER | {
    "moe.router": "block_sparse_moe.gate.weight", "moe.gate": "block_sparse_moe.experts.{e}.w1.weight",
    "moe.up": "block_sparse_moe.experts.{e}.w3.weight", "moe.down": "block_sparse_moe.experts.{e}.w2.weight",
}  # fmt: skip
# As transformers 5 has them in memory, and in files that were saved with save_original_format=False.
_STACKED = _LAYER | {
    "moe.router": "mlp.gate.weight", "moe.gate": "mlp.experts.gate_up_proj", "moe.up": "mlp.experts.gate_up_proj",
    "moe.down": "mlp.experts.down_proj",
}  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether this directory holds a Hugging Face model, of whatever architecture."""
    if any((path / name).is_file() for name in (SINGLE, INDEX)):
        return True
    try:
        return "model_type" in json_object(path / "config.json")
    except CheckpointError:
        return False


def _shards(path: Path) -> dict[str, set[str]]:
    """Each file that holds arrays -> the names that the index puts there; none without an index."""
    if not (path / INDEX).is_file():
        return {SINGLE: set()}
    if (path / SINGLE).is_file():
        raise CheckpointError(f"{INDEX}: wanted it or {SINGLE}, got both; remove the one that is stale")
    placed, shards = json_object(path / INDEX).get("weight_map"), defaultdict(set)
    if not isinstance(placed, dict) or not placed or not all(isinstance(shard, str) for shard in placed.values()):
        raise CheckpointError(f"{INDEX}: wanted a weight_map from names to files, got none; download it again")
    for name, shard in placed.items():
        shards[shard].add(name)
    return shards


def _entries(path: Path, shard: str) -> dict[str, dict[str, Any]]:
    """The header of one file. An index may name nothing but a file beside it: no folder, no way out of this one."""
    if not re.fullmatch(r"\w[\w.-]*\.safetensors", shard):
        raise CheckpointError(
            f"{INDEX}: {shard!r}: wanted the name of a safetensors file beside it, refused; do not trust its source"
        )
    if not (path / shard).is_file():
        raise CheckpointError(f"{shard}: missing; download it again")
    return read_header(path / shard)


def _table(names: Iterable[str]) -> dict[str, str]:
    return _STACKED if any(name.endswith(".gate_up_proj") for name in names) else _APART


def _theirs(field: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a Linear's weight: what is contracted lies last, heads and their widths are one axis."""
    if len(shape) == 1:
        return shape
    lead, rows = CONTRACTED.get(field, (0, 1))
    return (*shape[:lead], math.prod(shape[lead + rows :]), math.prod(shape[lead : lead + rows]))


def _ours(field: str, shape: tuple[int, ...], array: np.ndarray) -> np.ndarray:
    """A view in our layout of an array in theirs."""
    if len(shape) == 1:
        return array
    lead, rows = CONTRACTED.get(field, (0, 1))
    split = array.reshape(*shape[:lead], *shape[lead + rows :], *shape[lead : lead + rows])
    return np.moveaxis(split, range(-rows, 0), range(lead, lead + rows))


def _wanted(config: ModelConfig, table: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Every name of a model and its shape, in their layout."""
    vocab, shapes = (config.vocab_size, config.d_model), block_shapes(config)
    wanted = {EMBED: vocab, FINAL_NORM: (config.d_model,)} | ({} if config.tied_embedding else {UNEMBED: vocab})
    for layer in range(config.num_layers):
        for ours, theirs in table.items():
            name, shape = f"model.layers.{layer}.{theirs}", _theirs(ours, shapes[ours])
            if "{e}" in name:
                wanted |= {name.format(e=e): shape[1:] for e in range(shape[0])}
            else:
                wanted[name] = (shape[0], 2 * shape[1], shape[2]) if theirs.endswith("gate_up_proj") else shape
    return wanted


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every file that is missing, truncated or elsewhere, every array missing, unknown or mis-shaped, a line each."""
    arrays: dict[str, dict[str, Any]] = {}
    lost: set[str] = set()
    try:
        shards = _shards(path)
    except CheckpointError as error:
        yield str(error).removeprefix(f"{path}/")
        return
    for shard, promised in sorted(shards.items()):
        try:
            entries = _entries(path, shard)
        except CheckpointError as error:
            yield str(error).removeprefix(f"{path}/")
            lost |= promised
            continue
        yield from (f"{name}: {shard} has a second array of this name" for name in sorted(entries.keys() & arrays))
        arrays |= entries
    if not arrays:
        return
    table = _table(arrays)
    if foreign := sorted({n for n, shape in block_shapes(config).items() if shape is not None} ^ table.keys()):
        yield f"config: wanted a Mixtral's, got one that disagrees about {', '.join(foreign)}"
        return
    wanted = _wanted(config, table)
    yield from (f"{name}: missing" for name in wanted if name not in arrays and name not in lost)
    yield from (f"{name}: not part of this model" for name in sorted(arrays.keys() - wanted))
    for name in (n for n in wanted if n in arrays):
        kind, shape = arrays[name]["dtype"], tuple(arrays[name]["shape"])
        if shape != wanted[name]:
            yield f"{name}: wanted shape {wanted[name]}, got {shape}"
        if kind not in FLOATS:
            yield f"{name}: wanted {', '.join(FLOATS)}, got {kind}"


class Layers(Sequence[BlockWeights]):
    """A model's blocks, each made when it is asked for and kept by nobody: one layer's experts are in memory at a time."""

    def __init__(self, config: ModelConfig, arrays: dict[str, np.ndarray]) -> None:
        self.config, self.arrays, self.table = config, arrays, _table(arrays)
        self.shapes = block_shapes(config)

    def __len__(self) -> int:
        return self.config.num_layers

    def __getitem__(self, index: int) -> BlockWeights:  # type: ignore[override]
        layer = range(len(self))[index]
        return block_from(lambda field: self._array(layer, field) if field in self.table else None)

    def _array(self, layer: int, field: str) -> np.ndarray:
        name, shape = f"model.layers.{layer}.{self.table[field]}", self.shapes[field]
        if "{e}" in name:  # stacked as they lie: whoever copies the view next can transpose on the way
            return _ours(field, shape, np.stack([self.arrays[name.format(e=e)] for e in range(shape[0])]))
        array = self.arrays[name]
        if name.endswith("gate_up_proj"):
            array = np.split(array, 2, axis=1)[field == "moe.up"]
        return _ours(field, shape, array)


def load(path: Path, config: ModelConfig) -> ModelWeights:
    """The weights of a Mixtral, mapped from its files. Raises CheckpointError with every problem found."""
    if found := list(problems(path, config)):
        raise CheckpointError(f"{path}: wanted the arrays that config.json describes:\n  " + "\n  ".join(found))
    arrays = {name: array for shard in _shards(path) for name, array in map_arrays(path / shard).items()}
    return ModelWeights(arrays[EMBED], Layers(config, arrays), arrays[FINAL_NORM], arrays.get(UNEMBED))


def describe(path: Path, config: ModelConfig) -> tuple[list[int], dict[str, np.ndarray]]:
    """(the layers in order, the arrays of layer 0 and of no layer by our names), for `inspect`; none where there are
    problems: `problems` names them.
    """
    if any(problems(path, config)):
        return list(range(config.num_layers)), {}
    arrays = {name: array for shard in _shards(path) for name, array in map_arrays(path / shard).items()}
    first, found = Layers(config, arrays), {}
    for field, shape in first.shapes.items():
        name = f"model.layers.0.{first.table[field]}" if field in first.table else ""
        if "{e}" in name:  # a view that stands for the stack: no expert is read
            found[field] = _ours(field, shape, np.broadcast_to(arrays[name.format(e=0)], (shape[0], *_theirs(field, shape)[1:])))
        elif name:
            found[field] = first._array(0, field)
    outer = {"embed": EMBED, "final_norm": FINAL_NORM, "unembed": UNEMBED}
    return list(range(config.num_layers)), found | {ours: arrays[name] for ours, name in outer.items() if name in arrays}


def is_hub_id(text: str) -> bool:
    """Whether this can be a model's name on the hub: owner/name."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text, re.ASCII))


def download(hub_id: str) -> Path:
    """The directory of a model of the hub, fetched if the hub's cache does not have it. Raises CheckpointError.

    Config, safetensors and the SentencePiece tokenizer, nothing else: no code, no pickles, no second copy in another format.
    """
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.model"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns="consolidated*"))
    except Exception as error:  # the hub's client lets those of its HTTP library through, too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{hub_id}: wanted a directory here or a model of the Hugging Face hub, got neither ({reason}); "
            "check the name, or `hf download` it where there is a network and give its directory"
        ) from error
