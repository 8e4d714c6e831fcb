"""Text on disk -> documents: JSON lines, plain or packed with xz, bz2 or gzip."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_OPENERS = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}


@dataclass(frozen=True)
class Document:
    """One text and the domain it belongs to."""

    text: str
    domain: str


def read_documents(path: str | Path) -> Iterator[Document]:
    """The documents of one JSON-lines file, in order.

    Each line holds at least `text`. `domain` is the line's own, else the file's name without `train-` and its endings.
    Raises ValueError, naming the line, for a line that is not such an object.
    """
    path = Path(path)
    fallback = path.name.split(".")[0].removeprefix("train-")
    with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield Document(row["text"], row.get("domain", fallback))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f'{path}, line {number}: wanted a JSON object with "text", got {line[:40]!r}; '
                    "write one document a line"
                ) from error


def corpus_files(folder: str | Path) -> list[Path]:
    """The training files of a folder (`train-*.jsonl*`), sorted by name."""
    files = sorted(p for p in Path(folder).glob("train-*.jsonl*"))
    if not files:
        raise FileNotFoundError(f"{folder}: wanted files named train-<domain>.jsonl[.xz|.bz2|.gz], found none")
    return files
