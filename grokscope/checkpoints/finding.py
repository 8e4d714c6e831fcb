"""Where a model's files are: the embedded one's, a directory's, the hub's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from grokscope.checkpoints import huggingface
from grokscope.text.opening import BESIDE, tokenizer_file


def found(name: str, weights: bool = True) -> Path:
    """The directory of a model by its path or its name; one of the hub is fetched, unless it is in the hub's cache.

    weights: whether they are wanted too, or the config alone.
    """
    if name == "pocket":
        return Path(str(files("grokscope") / "data" / "pocket"))
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if not Path(name).parent.is_dir() and huggingface.is_hub_id(name):
        return huggingface.download(name, weights)
    return Path(name)


def tokenizer_files(folder: Path) -> list[Path]:
    """The tokenizer and what belongs to it, to be copied with a checkpoint."""
    file = tokenizer_file(folder)
    return [] if file is None else [file, *(p for name in BESIDE if (p := file.parent / name).is_file())]
