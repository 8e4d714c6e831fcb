"""A checkpoint being read: each layer is checked the first time that it is used."""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from grokscope.checkpoints import FORMATS, CheckpointError
from grokscope.config import ModelConfig
from grokscope.transformer.forms import Quantised
from grokscope.transformer.weights import CONTRACTED, OUTER, BlockWeights, field_of

OURS = (".safetensors", ".json", ".model")
"""Endings of a checkpoint's own files, besides the release's `tensor...`; what else is written beside them is not ours."""

THREADS = 8
"""That look at the weights, of which one alone takes longer than a disk."""
SMALL = 1 << 20
"""Bytes of a file that is read whole to tell a checkpoint from another."""


class Source:
    """The arrays of a checkpoint's directory, mapped; none is read before it is asked for.

    Checksums, where the format has them, and finite values are looked at once; that no file has changed since the directory
    was opened, each time. Raises CheckpointError, with every file that is wrong, when it is made and when a layer is read.
    """

    def __init__(self, kind: str, folder: Path, config: ModelConfig) -> None:
        self.kind, self.folder = kind, folder
        self.weights = FORMATS[kind].load(folder, config)
        self._files = self._state()
        self._checked: set[int | None] = set()

    @property
    def bytes(self) -> int:
        """Of all the files."""
        return sum(size for size, _ in self._files.values())

    def block(self, layer: int) -> BlockWeights:
        """One layer, as it lies in its files."""
        block = self.weights.blocks[layer]
        self._check(layer, f"blocks.{layer}.", block)
        return block

    def outer(self) -> dict[str, Any]:
        """Each array outside the blocks by its field name, or None."""
        arrays = {name: getattr(self.weights, name) for name in OUTER}
        self._check(None, "", arrays)
        return arrays

    def say_what_quantizes(self, who: str) -> None:
        """Say it where no matrix (of the first layer, the last and outside) is plain, so that quantize= changes nothing."""
        blocks = [self.weights.blocks[n] for n in {0, len(self.weights.blocks) - 1}]
        inside = [field_of(block, name) for block in blocks for name in CONTRACTED if "." in name]
        stored = [a for a in (*inside, *(getattr(self.weights, name) for name in OUTER if name in CONTRACTED)) if a is not None]
        if all(isinstance(array, Quantised) for array in stored):
            kinds = ", ".join(sorted({type(a).__name__ if not hasattr(a, "values") else str(a.values.dtype) for a in stored}))
            tqdm.write(f"{who}: its matrices are stored as {kinds} already, quantize changes nothing", file=sys.stderr)

    def _check(self, layer: int | None, name: str, arrays: Any) -> None:
        self.check_unchanged()
        if layer in self._checked:
            return
        if hasattr(FORMATS[self.kind], "verify"):
            FORMATS[self.kind].verify(self.folder, FORMATS[self.kind].file_of(layer))
        check_finite(arrays, self.folder, name)
        self._checked.add(layer)

    def check_unchanged(self) -> None:
        """Raise CheckpointError, naming them, where files are not what they were when this was made."""
        now = self._state()
        if changed := sorted(f for f, state in self._files.items() if now.get(f) != state):
            raise CheckpointError(
                f"{self.folder}: wanted the files that were opened, {', '.join(changed)} changed since; load it again"
            )

    @property
    def fingerprint(self) -> str:
        """Of the files' names, sizes and times: another when a file is written anew."""
        return hashlib.sha256(repr(sorted(self._files.items())).encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """Of the files' names and sizes, and of what the small ones hold (norms, routers, checksums): the same for every
        copy of a checkpoint, another for its neighbour of the same name.
        """
        digest = hashlib.sha256()
        for name, (size, _) in sorted(self._files.items()):
            digest.update(f"{name} {size}\n".encode())
            if size < SMALL:
                digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()[:16]

    def _state(self) -> dict[str, tuple[int, int]]:
        ours = (p for p in self.folder.iterdir() if p.is_file() and (p.suffix in OURS or p.name.startswith("tensor")))
        stats = {p.name: p.stat() for p in ours}
        return {name: (s.st_size, s.st_mtime_ns) for name, s in stats.items()}


def check_finite(arrays: Any, path: Path, prefix: str = "") -> None:
    """Raise CheckpointError, naming the arrays, where a weight or a scale is NaN or infinite."""
    wrong = []
    for where, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        if leaf.dtype.kind not in "iub" and not _finite(leaf):
            wrong.append(prefix + jax.tree_util.keystr(where, simple=True, separator="."))
    if wrong:
        raise CheckpointError(
            f"{path}: wanted finite weights, found NaN or infinity in {', '.join(wrong)}; download it again"
        )


def _finite(array: Any) -> bool:
    """Looked at in stretches, in the order of memory and by several threads: an embedding of 3 GB is neither copied nor waited
    for.
    """
    if not array.ndim or array.nbytes < 2**24:
        return _all_finite(array)
    array = array.transpose(sorted(range(array.ndim), key=lambda axis: -array.strides[axis]))
    array = array.reshape(-1) if array.flags.c_contiguous else array  # a stack's rows are experts, too large a stretch
    stretch = max(1, 2**21 // max(1, int(np.prod(array.shape[1:]))))  # a processor's cache holds it for the second look
    with ThreadPoolExecutor(THREADS, "look") as threads:
        return all(threads.map(lambda n: _all_finite(array[n : n + stretch]), range(0, len(array), stretch)))


def _all_finite(array: Any) -> bool:
    """By their bits, which are those of infinity or more where a value is not finite; nothing is copied."""
    width = array.dtype.itemsize
    infinite = int(np.array(np.inf).astype(array.dtype).view(f"u{width}"))
    either = ((f"i{width}", infinite), (f"u{width}", infinite | 1 << 8 * width - 1))  # the largest with a sign, and of all
    return not array.size or all(int(array.view(kind).max()) < limit for kind, limit in either)
