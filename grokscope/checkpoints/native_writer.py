"""Writes a directory in our format so that nothing half-written is ever taken for whole.

Each file is written under another name, forced to the disk and renamed, then its digests are noted; the directory gets its
own name last. Digests are of the bytes that were meant, so that what the disk holds can be checked against them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from grokscope.checkpoints.digests import Digests
from grokscope.checkpoints.mapped_safetensors import stretches
from grokscope.config import ModelConfig
from grokscope.disk.reading import read_json
from grokscope.disk.writing import force, whole_file, write_whole
from grokscope.transformer.forms import Mxfp4, Scaled
from grokscope.transformer.weights import CONTRACTED, ModelWeights, field_of
from grokscope.transformer.weights import OUTER as OUTER_ARRAYS

CHECKSUMS, OUTER = "checksums.json", "outer.safetensors"

Seen = Callable[[int], Any]
"""Gets the number of bytes of each stretch that was written."""


def file_of(layer: int | None) -> str:
    """The file that holds a layer, or with None what belongs to no layer: embedding and last norm."""
    return OUTER if layer is None else f"layer-{layer:03d}.safetensors"


def layer_of(name: str) -> int:
    """The layer that a file holds."""
    return int(name.removeprefix("layer-").removesuffix(".safetensors"))


def arrays_of(config: ModelConfig, weights: ModelWeights, layer: int | None) -> dict[str, np.ndarray]:
    """What the file of a layer, or of no layer, holds; arrays that lie in files are not read."""
    if layer is None:
        fields = {name: getattr(weights, name) for name in OUTER_ARRAYS}
    else:
        block = weights.blocks[layer]
        fields = {name: field_of(block, name) for name in config.block(layer).shapes}
    flat: dict[str, np.ndarray] = {}
    for name, value in fields.items():
        if isinstance(value, Scaled):
            groups = "scales" if value.size is None else f"scales_of_{value.size}"
            flat[f"{name}.values"], flat[f"{name}.{groups}"] = np.asarray(value.values), np.asarray(value.scales)
        elif isinstance(value, Mxfp4):
            flat[f"{name}.codes"], flat[f"{name}.scales"] = np.asarray(value.codes), np.asarray(value.scales)
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat


def put_together(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `arrays_of`, by field name."""
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        field, _, part = name.rpartition(".")
        if part in ("values", "codes") or part.startswith("scales"):
            parts.setdefault(field, {})[part] = array
        else:
            whole[name] = array
    for field, held in parts.items():
        groups = next(part for part in held if part.startswith("scales"))
        size = int(groups.removeprefix("scales_of_")) if "_of_" in groups else None
        whole[field] = (
            Mxfp4(held["codes"], held[groups])
            if "codes" in held
            else Scaled(held["values"], held[groups], *CONTRACTED[field], size)
        )
    return whole


class Writer:
    """A directory in our format while it comes to be in `scratch`, beside the place where it will appear.

    `sums` has the files that are whole. A writer on a scratch that another left goes on after those.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"{path}: wanted a new or an empty directory, got one with files; name another")
        if scratch.is_symlink():
            raise FileExistsError(f"{scratch}: wanted a directory to work in, got a link to another; remove it")
        scratch.mkdir(parents=True, exist_ok=True)
        self.path, self.scratch = path, scratch
        self.sums: dict[str, list[str]] = {}
        if (scratch / CHECKSUMS).exists():
            with suppress(ValueError, AttributeError):  # what a power cut left of it names no file: all are written anew
                noted = read_json(scratch / CHECKSUMS)
                self.sums = {name: digests for name, digests in noted.items() if (scratch / name).is_file()}

    def write(self, name: str, parts: Iterable[memoryview], seen: Seen = lambda _: None) -> None:
        """One file of these bytes. It is there when this returns, and where it fails it is not."""
        digests = Digests()
        try:
            self._replace(name, parts, lambda part: (digests.add(part), seen(len(part))))
            self.sums[name] = digests.finish()
        finally:
            digests.close()
        self._note()

    def write_arrays(self, name: str, arrays: dict[str, np.ndarray], seen: Seen = lambda _: None) -> None:
        """One safetensors file."""
        self.write(name, stretches(arrays), seen)

    def drop(self, name: str) -> None:
        """Forget a file: it will be written again."""
        del self.sums[name]
        self._note()

    def forget(self) -> None:
        """Forget all files: nothing tells of what source they are."""
        self.sums = {}
        self._note()

    def finish(self, header: dict[str, Any], tokenizer: Sequence[str | Path]) -> None:
        """Write what is not weights, and give the directory its name. tokenizer: the files to copy."""
        self.write_rest(header, tokenizer)
        if self.path.exists():
            self.path.rmdir()
        self.scratch.replace(self.path)
        force(self.path.parent)

    def write_rest(self, header: dict[str, Any], tokenizer: Sequence[str | Path]) -> None:
        """What is not weights."""
        self.write("config.json", [memoryview((json.dumps(header, indent=1) + "\n").encode())])
        for file in map(Path, tokenizer):
            name = "tokenizer.model" if file.suffix == ".model" else file.name
            self.write(name, [memoryview(file.read_bytes())])

    def _note(self) -> None:
        text = json.dumps(dict(sorted(self.sums.items())), indent=1) + "\n"
        write_whole(self.scratch / CHECKSUMS, text.encode(), replace=True)

    def _replace(self, name: str, parts: Iterable[memoryview], seen: Callable[[memoryview], Any]) -> None:
        with whole_file(self.scratch / name, replace=True) as file:
            for part in parts:
                seen(part)
                file.write(part)
