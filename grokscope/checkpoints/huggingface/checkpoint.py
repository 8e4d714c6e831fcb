"""A directory of the Hugging Face hub: config.json and safetensors, whole or in shards, translated by its family's table.

The files come from strangers: only config.json, the index and safetensors headers are read, code beside them (`auto_map`,
*.py) and pickles (*.bin) never are. Arrays are views of the mapped files; only experts that lie apart are copied, into the
stack of the layer that is asked for.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from grokscope.checkpoints.huggingface.families import FAMILIES, Family, kind_of
from grokscope.checkpoints.huggingface.fields import Fields, json_object
from grokscope.checkpoints.huggingface.files import INDEX, SINGLE, arrays_of, headers
from grokscope.checkpoints.huggingface.ranks import Joined
from grokscope.checkpoints.huggingface.ranks import kind_of as ending_of
from grokscope.checkpoints.huggingface.tensors import Layout, Stored, Table, Tensor, read
from grokscope.checkpoints.pickle_machine import CheckpointError
from grokscope.config import BlockConfig, ModelConfig
from grokscope.harmless import listed, told, visible
from grokscope.transformer.weights import OUTER, BlockWeights, ModelWeights, block_from

HYBRIDS = (
    "qwen3_next", "qwen3_5_moe", "qwen3_5_moe_text", "kimi_linear", "granitemoehybrid", "nemotron_h", "jamba", "lfm2_moe", "bamba",
    "minimax", "minimax_text_01", "minimax_m1",
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether this directory holds a Hugging Face model, of whatever architecture."""
    if any((path / name).is_file() for name in (SINGLE, INDEX)):
        return True
    try:
        return bool({"model_type", "architectures"} & json_object(path / "config.json").keys())
    except CheckpointError:
        return False


def read_config(path: Path) -> ModelConfig:
    """The config of a directory. Raises CheckpointError for an unknown architecture, and with all that is not supported."""
    file = path / "config.json"
    values = json_object(file)
    family, fields = _family(file, values), Fields(values)
    config = None
    try:
        made = family.config(fields)
        fields.problems += fields.unread()
        _quantised(fields)
        config = None if fields.problems else ModelConfig(**made | _ends(path, made))
    except ValueError as error:
        fields.problems.append(str(error))
    if config is None:
        kind, found = kind_of(values), listed(list(dict.fromkeys(fields.problems)))
        raise CheckpointError(f"{file}: wanted a {kind} that can be computed here; name another:{found}")
    if fields.unknown:
        said = ", ".join(f"{visible(name)[:80]} = {told(values[name], 40)}" for name in fields.unknown)
        warnings.warn(f"{file}: fields that are not known here, taken to change nothing: {said}", stacklevel=2)
    return config


def _ends(path: Path, made: dict[str, Any]) -> dict[str, Any]:
    """The tokens at which a text ends, those of generation_config.json too, where some chat models alone name theirs."""
    file = path / "generation_config.json"
    if not file.is_file() or "eos_token_id" not in (values := json_object(file)):
        return {}
    known, more = ((x if isinstance(x, list | tuple) else [x]) for x in (made.get("eos_id"), values["eos_token_id"]))
    ends = tuple(dict.fromkeys(n for n in (*known, *more) if n is not None))
    return {"eos_id": ends if len(ends) > 1 else ends[0] if ends else None}


def _family(file: Path, values: dict[str, Any]) -> Family:
    kind = kind_of(values)
    if isinstance(kind, str) and kind in FAMILIES:
        return FAMILIES[kind]
    if (isinstance(kind, str) and kind in HYBRIDS) or "linear_num_value_heads" in values or "mamba_n_heads" in values:
        why = "a hybrid: most of its layers are no attention but a recurrent state, which is not computed here"
    else:
        why = f"it is none of {', '.join(FAMILIES)}"
    raise CheckpointError(
        f"{file}: wanted an architecture that can be computed here, got model_type {told(kind)} ({why}); name another model, or "
        "study its routing as another engine recorded it: gs.read_router_logits, gs.read_routed_experts"
    )


def _quantised(fields: Fields) -> tuple[int, int] | None:
    """Rows and inputs that share a scale, of float8 weights. Notes a problem for a form that is not read here."""
    asked = fields.get("quantization_config")
    if asked is None:
        return None
    method = asked.get("quant_method") if isinstance(asked, dict) else None
    block = asked.get("weight_block_size") if method == "fp8" else None
    sizes = [n for n in block if type(n) is int and n > 0] if isinstance(block, list) else []
    if method == "fp8" and asked.get("fmt", "e4m3") in ("e4m3", "float8_e4m3fn") and len(sizes) == 2:
        return sizes[0], sizes[1]
    if method != "mxfp4":
        fields.refuse("quantization_config", "plain floats, mxfp4, or fp8 e4m3 in blocks", method or asked)
    return None


class _Names:
    """What a checkpoint's names must be: our fields, layer by layer, and where each lies."""

    def __init__(self, path: Path, config: ModelConfig) -> None:
        values = json_object(path / "config.json")
        self.config, self.family = config, _family(path / "config.json", values)
        fields = Fields(values)
        self.block = _quantised(fields)
        self.more = fields.size("num_nextn_predict_layers", "num_mtp_modules", default=0, least=0)
        self._tables: dict[BlockConfig, Table] = {}

    def table(self, layer: int) -> Table:
        """That of a layer; layers of equal description share one."""
        block = self.config.block(layer)
        if block not in self._tables:
            self._tables[block] = self.family.table(block)
        return self._tables[block]

    def outer(self) -> dict[str, str]:
        """Our fields outside the blocks -> names."""
        return {field: self.family.outer[field] for field in self.config.outer_shapes}

    def is_idle(self, name: str) -> bool:
        """Whether a tensor is one that every loader leaves alone: frequencies, a table beside a tied one, a layer that
        predicts several tokens.
        """
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        beyond = layer and self.config.num_layers <= int(layer[1]) < self.config.num_layers + self.more
        tied = name in ("lm_head.weight", "lm_head.weight_scale_inv") and self.config.tied_embedding
        return bool(beyond or tied or name.endswith("rotary_emb.inv_freq") or name.startswith("model.mtp"))


def _chosen(ways: tuple[Tensor, ...], stored: Stored, prefix: str) -> Tensor:
    """The way in which an array is spelt here; the first where none is there."""
    return next((t for t in ways if stored.has(prefix + t.name.format(e=0))), ways[0])


def _wanted(names: _Names, stored: Stored) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, shape with outputs before inputs, how it lies) of every tensor of the model."""
    shapes = names.config.outer_shapes
    yield from ((name, shapes[field], "plain") for field, name in names.outer().items())
    for layer in range(names.config.num_layers):
        prefix, table, block = f"model.layers.{layer}.", names.table(layer), names.config.block(layer)
        for field, shape in block.shapes.items():
            tensor, layout = _chosen(table[field], stored, prefix), Layout(field, shape)
            lies = "inputs first" if tensor.inputs_first else "outputs first"
            inner = (tensor.of or layout.out, *([] if layout.inputs is None else [layout.inputs]))
            if "{e}" in tensor.name:
                yield from ((prefix + tensor.name.format(e=e), inner, lies) for e in range(layout.lead[0]))
            else:
                lead = () if block.is_dense else layout.lead
                yield prefix + tensor.name, (*lead, *inner), lies


def problems(path: Path, config: ModelConfig) -> Iterator[str]:
    """Every file that is missing, truncated or elsewhere, every array missing, unknown or mis-shaped, a line each."""
    names = _Names(path, config)
    kinds = names.family.kinds
    entries, found, lost = headers(path, kinds)
    found = [*found, *([] if entries or found else ["*.safetensors: wanted arrays, got files that hold none; download them again"])]
    yield from found
    if not entries:
        return
    stored, known = Stored(entries, names.block), set()
    if odd := {f for n in range(config.num_layers) for f in config.block(n).shapes if f not in names.table(n)}:
        yield f"config: wanted what checkpoints of this kind hold, got one with {', '.join(sorted(odd))}"
        return
    missing, wrong = [], []
    for name, shape, lies in dict.fromkeys(_wanted(names, stored)):
        known.update(stored.names(name))
        if not stored.has(name):
            missing += [] if {name, ending_of(name, kinds)[0]} & lost else [f"{name}: missing"]
        else:
            wrong += list(stored.problems(name, shape, lies))
    yield from missing
    yield from (f"{name}: not part of this model" for name in sorted(entries.keys() - known) if not names.is_idle(name))
    yield from wrong


def idle(path: Path, config: ModelConfig) -> list[str]:
    """The arrays that are skipped, since they take no part in the forward pass."""
    names = _Names(path, config)
    entries = headers(path, names.family.kinds)[0]
    stored = Stored(entries, names.block)
    known = {part for name, *_ in _wanted(names, stored) for part in stored.names(name)}
    return sorted(name for name in entries.keys() - known if names.is_idle(name))


class Layers(Sequence[BlockWeights]):
    """A model's blocks, each made when it is asked for and kept by nobody: one layer's experts are in memory at a time."""

    def __init__(self, names: _Names, arrays: dict[str, np.ndarray | Joined]) -> None:
        self.names, self.arrays = names, arrays
        self.stored = Stored(dict.fromkeys(arrays, ("", ())), names.block)

    def __len__(self) -> int:
        return self.names.config.num_layers

    def __getitem__(self, index: int) -> BlockWeights:  # type: ignore[override]
        layer = range(len(self))[index]
        shapes = self.names.config.block(layer).shapes
        return block_from(lambda field: self.array(layer, field) if field in shapes else None)

    def array(self, layer: int, field: str, look: bool = False) -> Any:
        """One array of a layer, in our layout. look: of experts that lie apart the first stands for all, and none is read."""
        shape, prefix = self.names.config.block(layer).shapes[field], f"model.layers.{layer}."
        tensor = _chosen(self.names.table(layer)[field], self.stored, prefix)
        if not look or "{e}" not in tensor.name:
            return read(self.arrays, self.names.block, tensor, prefix, Layout(field, shape))
        one = read(self.arrays, self.names.block, tensor, prefix, Layout(field, (1, *shape[1:])))
        return jax.tree.map(lambda a: np.broadcast_to(a, (shape[0], *a.shape[1:])), one)


def load(path: Path, config: ModelConfig) -> ModelWeights:
    """The weights of a directory, mapped from its files. Raises CheckpointError with every problem found."""
    if found := list(problems(path, config)):
        raise CheckpointError(f"{path}: wanted the arrays that config.json describes:{listed(found)}")
    names = _Names(path, config)
    arrays, outer = arrays_of(path, names.family.kinds), names.outer()
    return ModelWeights(blocks=Layers(names, arrays), **{f: arrays[outer[f]] if f in outer else None for f in OUTER})


def describe(path: Path, config: ModelConfig) -> tuple[list[int], dict[str, Any]]:
    """(the layers in order, the arrays of layer 0 and of no layer by our names), for `inspect`; none where there are
    problems: `problems` names them.
    """
    if any(problems(path, config)):
        return list(range(config.num_layers)), {}
    names = _Names(path, config)
    arrays = {name: a.sketch() if isinstance(a, Joined) else a for name, a in arrays_of(path, names.family.kinds).items()}
    first = Layers(names, arrays)
    found = {field: first.array(0, field, look=True) for field in config.block(0).shapes}
    return list(range(config.num_layers)), found | {field: arrays[name] for field, name in names.outer().items()}
