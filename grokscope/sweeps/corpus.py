"""Text from anywhere -> documents, one after the other: files of text, JSON lines or Parquet, folders, globs, stdin, lists."""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from grokscope.disk.parquet import parquet_file, parquet_rows
from grokscope.disk.reading import parse_json
from grokscope.harmless import told
from grokscope.sweeps.bounded import DOCUMENT_LIMIT, BoundedText

OPENERS = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
ROWS = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md", ".rst", ".py", ".html", ".xml", ".tex", ".csv")


@dataclass(frozen=True)
class Document:
    """One text and the group that it belongs to (its domain, its language, anything)."""

    text: str
    label: str = ""


def read_documents(source: Any, label: str | None = None) -> Iterator[Document]:
    """The documents of a source, in an order that is always the same.

    source: a path, a glob or a folder (its files by name, all folders below too), "-" for standard input, or an iterable of
    texts, of mappings with "text", or of Documents. Files: .jsonl (an object with "text" on each line), .parquet (a column
    "text"), and text, a document a file; each but Parquet also packed (.gz, .bz2, .xz). label: the field that groups them,
    else (absent, or null) the name of the file that a document stands in, without `train-` and its endings, or nothing where it
    stands in none; None for no groups.

    Raises FileNotFoundError, and ValueError naming file and line for what is not a document.
    """
    if not isinstance(source, str | Path):
        yield from (_given(item, label) for item in source)
    elif str(source) == "-":
        yield from _of_stream(sys.stdin, Path("-.jsonl"), label)
    else:
        for path in files(source):
            yield from _of_file(path, label)


def files(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted."""
    path = Path(source)
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _kind(p) in (*ROWS, *TEXTS, ".parquet")]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(str(source), recursive=True) if Path(p).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{source}: wanted a file, a folder or a glob of {', '.join((*ROWS, '.parquet', '.txt'))}, found none; "
            "put a text itself in a list"
        )
    return sorted(found)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _given(item: Any, label: str | None) -> Document:
    if isinstance(item, Document):
        return item
    if isinstance(item, str):
        return Document(item)
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        return Document(item["text"], _group(item, label, "documents", ""))
    raise TypeError(f'documents: wanted texts or mappings with "text", got {type(item).__name__}; make each a str')


def _of_file(path: Path, label: str | None) -> Iterator[Document]:
    if _kind(path) == ".parquet":
        yield from _of_parquet(path, label)
        return
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as stream:
            yield from _of_stream(stream, path, label)
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's word, not the file's
        raise ValueError(f"{path}: wanted whole UTF-8 text, got something else ({error}); convert or download it again") from error


def _of_stream(raw: IO[str], path: Path, label: str | None) -> Iterator[Document]:
    stream = BoundedText(raw, path)
    if _kind(path) not in ROWS:
        yield Document(stream.read(), "" if label is None else _name(path))
        return
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, "line")
            if not isinstance(row["text"], str):
                raise TypeError("text is no string")
            row["text"].encode()  # a lone surrogate is no text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'{path}, line {number}: wanted a JSON object with "text", got {line[:40]!r}; write one document a line'
            ) from error
        yield Document(row["text"], _group(row, label, f"{path}, line {number}", _name(path)))


def _of_parquet(path: Path, label: str | None) -> Iterator[Document]:
    file = parquet_file(path)
    names: Iterable[str] = file.schema_arrow.names
    if "text" not in names:
        raise ValueError(f'{path}: wanted a column "text", got {", ".join(map(told, names))}; rename one')
    columns = ["text", *([label] if label in names else [])]
    for number, row in enumerate(parquet_rows(file, path, columns, DOCUMENT_LIMIT), 1):
        if not isinstance(row["text"], str):
            raise ValueError(f'{path}, row {number}: wanted a text in "text", got {told(row["text"])}; leave the row out')
        yield Document(row["text"], _group(row, label, f"{path}, row {number}", _name(path)))


def _group(row: Mapping[str, Any], label: str | None, where: str, default: str) -> str:
    """The document's label: a text, a number or a truth value as text; `default` where it has none, or null."""
    value = None if label is None else row.get(label)
    if value is None:
        return "" if label is None else default
    if not isinstance(value, str | int | float):
        raise ValueError(f"{where}: wanted a name in {label!r}, got {told(value)}; give each document one text or number")
    return str(value)


def _name(path: Path) -> str:
    return path.name.split(".")[0].removeprefix("train-")
