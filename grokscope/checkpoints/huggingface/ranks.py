"""A release that several ranks wrote: files that hold slices of the same tensors, under the same names.

Grok-2's files are pytorch_model-NNNNN-TP-common.safetensors, whole tensors, and -TP-000 to -TP-007, an eighth of each tensor
apiece. NNNNN counts kinds of tensors; it only names a file that is missing, what a file holds is what its header says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RANKS = 8
Kinds = tuple[tuple[str, int | None], ...]
"""For each NNNNN: how the names in it end, and the axis along which the ranks' parts of a tensor are joined (None: whole)."""
Held = dict[str, tuple[str, tuple[int, ...]]]
"""Of one name: file -> dtype and shape of what it holds."""

_FILE = re.compile(r"pytorch_model-(\d{5})-TP-(common|00[0-7])\.safetensors")


def is_rank_file(name: str) -> bool:
    """Whether a file is one of such a release, by its name."""
    return bool(_FILE.fullmatch(name))


def rank_files(path: Path) -> list[str]:
    """Those of a directory, in the order of their names; none where it is no such release."""
    return sorted(p.name for p in path.iterdir() if is_rank_file(p.name))


def rank_of(file: str) -> int | None:
    """The rank that wrote a file; None: it holds whole tensors."""
    found = _FILE.fullmatch(file)
    return None if found is None or found[2] == "common" else int(found[2])


def kind_of(name: str, kinds: Kinds) -> tuple[str, int | None]:
    """The ending and the axis of a name; itself and None where no kind has it."""
    return next(((ending, axis) for ending, axis in kinds if name.endswith(ending)), (name, None))


@dataclass(frozen=True, eq=False)
class Joined:
    """A tensor that lies in parts, each in its file, in the order of `axis`: nobody has it whole but who copies it."""

    parts: tuple[np.ndarray, ...]
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the whole."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def copy_to(self, out: np.ndarray) -> None:
        """Write the whole, part after part, into an array of its shape."""
        at = 0
        for part in self.parts:
            stop = at + part.shape[self.axis]
            out[(*[slice(None)] * self.axis, slice(at, stop))] = part
            at = stop

    def sketch(self) -> np.ndarray:
        """Its shape and type alone, of which nothing is read."""
        return np.broadcast_to(np.empty((), self.parts[0].dtype), self.shape)


def joined(files: dict[str, np.ndarray], name: str, kinds: Kinds) -> np.ndarray | Joined:
    """The arrays that files hold under one name, as one."""
    axis = kind_of(name, kinds)[1]
    if len(files) == 1 or axis is None:
        return next(iter(files.values()))
    return Joined(tuple(files[file] for file in sorted(files, key=lambda f: rank_of(f) or 0)), axis)


def whole(name: str, held: Held, kinds: Kinds) -> tuple[tuple[str, tuple[int, ...]] | None, list[str]]:
    """(dtype and shape of what files hold under one name, None where ranks lack, what is wrong)."""
    files = sorted(held)
    axis = kind_of(name, kinds)[1]
    ranks = {rank: file for file in files if (rank := rank_of(file)) is not None}
    if axis is None or not ranks:
        return held[files[0]], [f"{name}: {file} has a second array of this name" for file in files[1:]]
    if len(ranks) < len(files):
        several = [f"{name}: wanted one array in each of {RANKS} ranks or one in all, got it in {', '.join(files)}"]
        return held[files[0]], several
    if set(ranks) != set(range(RANKS)):
        return None, []
    usual = Counter(held.values()).most_common(1)[0][0]
    odd = [file for file in files if held[file] != usual]
    wanted = f"wanted {usual[0]} {usual[1]} as in the other ranks"
    dtype, shape = usual[0], list(usual[1])
    shape[axis : axis + 1] = [RANKS * n for n in shape[axis : axis + 1]]
    return (dtype, tuple(shape)), [f"{file}: {name}: {wanted}, got {held[file][0]} {held[file][1]}" for file in odd]


def lacking(held: dict[str, Held], kinds: Kinds, present: list[str], broken: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(what nobody has, lines about it) where ranks or kinds lack: an ending with each of its files that is missing, else a
    name. present: the files that are there, broken: those of them that cannot be read, about which there are lines already.
    """
    complete: set[str] = set()
    torn: dict[str, list[str]] = {}
    for name, files in held.items():
        ending = kind_of(name, kinds)[0]
        if whole(name, files, kinds)[0] is not None:
            complete.add(ending)
            continue
        ranks = sorted(set(range(RANKS)) - {rank_of(f) for f in files})
        lacks = ", ".join(f"TP-{rank:03d}" for rank in ranks)
        torn.setdefault(ending, []).append(f"{name}: wanted a part in each of {RANKS} ranks, got none in {lacks}")
    for number, (ending, axis) in enumerate(kinds):
        if ending in complete:
            files = []
        else:
            ranks = ["common"] if axis is None else [f"{rank:03d}" for rank in range(RANKS)]
            files = [f"pytorch_model-{number:05d}-TP-{rank}.safetensors" for rank in ranks]
        missing = [f"{file}: missing; download it" for file in files if file not in present]
        if missing or set(files) & set(broken):
            yield ending, missing
        else:
            yield from ((line.split(":")[0], [line]) for line in torn.get(ending, []))
