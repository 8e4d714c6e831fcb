"""Files -> weights. One module a format, none knows another; `open_checkpoint` recognises which.

A format answers: `recognises(path)`, `read_config(path)`, `problems(path, config)` and `load(path, config)`.

May import config and transformer. Read source.py after this.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from grokscope.checkpoints import grok1, huggingface, native
from grokscope.checkpoints.pickle_machine import CheckpointError

FORMATS: dict[str, ModuleType] = {"grokscope": native, "grok-1": grok1, "huggingface": huggingface}

__all__ = ["FORMATS", "CheckpointError", "recognise"]


def recognise(path: str | Path) -> tuple[str, Path]:
    """(format, the directory that holds its files) of a path. Raises CheckpointError where there is none, or more than one.

    A directory that contains the released `ckpt-0` counts as it.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f'{path}: wanted a directory with a checkpoint or a hub id "owner/name", found nothing there; name one'
        )
    if not path.is_dir():
        raise CheckpointError(f"{path}: wanted a directory with a checkpoint, got a file; name its directory")
    found = {(name, where) for where in (path, path / "ckpt-0") for name, f in FORMATS.items() if f.recognises(where)}
    if not found:
        raise CheckpointError(
            f"{path}: wanted a checkpoint, found neither tensor00000_000 (Grok-1 as released), a config.json of "
            "grokscope's or Hugging Face's, nor model.safetensors"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{path}: wanted one checkpoint, found {len(found)} ({', '.join(sorted(n for n, _ in found))}); name one directory"
        )
    return found.pop()
