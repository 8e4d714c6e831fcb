"""The directory that a harvest goes to, and the room on its disk."""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from grokscope.activations.layout import ABOUT, PROCESS

SPARE = 1 << 26
"""Bytes of the disk that are left alone."""


def check_folder(out: Path, of: int) -> None:
    """Raise FileExistsError for a directory of something else, or of a harvest by another number of processes."""
    for name in sorted(p.name for p in out.iterdir()) if out.is_dir() else []:
        match, inside = PROCESS.fullmatch(name), out / name
        is_process = match is not None and int(match[2]) == of and inside.is_dir()
        if not is_process or (any(inside.iterdir()) and not (inside / ABOUT).exists()):
            raise FileExistsError(
                f"{out}: wanted a new directory, or one of this harvest and of {of} in all (shard=), got one with {name!r:.60}; "
                "name another"
            )


def check_disk(out: Path, need: int, share: float, progress: bool) -> None:
    """Say what it takes. Raises OSError, with what would fit, where the disk has no room for so many bytes."""
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = max(shutil.disk_usage(there).free - SPARE, 0)
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"harvest: wanted {need / 1e9:.2f} GB, the disk of {out} has {free / 1e9:.2f} GB to give. What would fit: "
            f"tokens={free / need * share:.2g}, or fewer layers or sites",
        )
    if progress and need > SPARE:
        tqdm.write(f"harvest: up to {need / 1e9:.2f} GB, of {free / 1e9:.1f} GB that are free", file=sys.stderr)
