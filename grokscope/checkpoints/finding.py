"""Where a model's files are: the embedded one's, a directory's, the hub's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from grokscope.checkpoints import huggingface


def found(name: str) -> Path:
    """The directory of a model by its path or its name; one of the hub is fetched, unless it is in the hub's cache."""
    if name == "pocket":
        return Path(str(files("grokscope") / "data" / "pocket"))
    if not Path(name).parent.is_dir() and huggingface.is_hub_id(name):
        return huggingface.download(name)
    return Path(name)


def tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer in a checkpoint's directory or beside it."""
    return next((p for p in (folder / "tokenizer.model", folder.parent / "tokenizer.model") if p.is_file()), None)
