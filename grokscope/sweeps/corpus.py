"""Text from anywhere -> documents, one after the other: files of text, JSON lines or Parquet, folders, globs, stdin, lists."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from grokscope.disk.parquet import parquet_file, parquet_rows
from grokscope.disk.reading import parse_json
from grokscope.harmless import told
from grokscope.sites import near
from grokscope.sweeps.bounded import DOCUMENT_LIMIT, BoundedText
from grokscope.text.given import LabelError, columns_of, items_of, label_of, labels_in

OPENERS = {".xz": lzma.open, ".bz2": bz2.open, ".gz": gzip.open}
ROWS = (".jsonl", ".ndjson")
TEXTS = (".txt", ".md", ".rst", ".py", ".html", ".xml", ".tex", ".csv")


FILE = "file"
"""The label that is always there: the name of the file that a document stands in, unless the documents have such a field."""
ENOUGH = 1000
"""Documents of a source that can be read but once among which one must have the field that is asked for."""


@dataclass(frozen=True)
class Document:
    """One text and the group that it belongs to (its domain, its language, anything)."""

    text: str
    label: str = ""


@dataclass(frozen=True)
class _Found(Document):
    """A document as it stands in its source."""

    is_named: bool = True
    """Whether the label is its own, not for want of one its file's."""
    fields: tuple[str, ...] = ()


def read_documents(source: Any, label: Any = None) -> Iterator[Document]:
    """The documents of a source, in an order that is always the same.

    source: a path, a glob or a folder (its files by name, all folders below too), "-" for standard input, a table with a column
    "text", or an iterable of texts, of mappings with "text", or of Documents. Files: .jsonl (an object with "text" on each
    line), .parquet (a column "text"), and text, a document a file; each but Parquet also packed (.gz, .bz2, .xz). label: the
    field that groups them; where a document has none (or null) it is the name of its file, without `train-` and its endings,
    or nothing where it stands in none. "file": always that name. Or the labels themselves, as many as there are documents;
    None for no groups.

    Raises FileNotFoundError, ValueError naming file and line for what is not a document, and at once where no document has the
    field, or labels are not as many as documents.
    """
    if label is None:
        yield from _documents(source, None)
    elif isinstance(label, str):
        yield from _with_field(source, label)
    else:
        yield from _labelled(source, labels_in(label))


def _documents(source: Any, label: str | None) -> Iterator[_Found]:
    if not isinstance(source, str | Path):
        yield from (_given(item, label) for item in _rows(source, label))
    elif str(source) == "-":
        stream = getattr(sys.stdin, "buffer", None)
        text = sys.stdin if stream is None else io.TextIOWrapper(stream, encoding="utf-8-sig")
        yield from _of_stream(text, Path("-.jsonl"), label)
    else:
        for path in files(source):
            yield from _of_file(path, label)


def _rows(source: Any, label: str | None) -> Iterable[Any]:
    """The items of a collection; of a table its rows, as far as they are needed."""
    names = columns_of(source)
    if names is None or label is None:
        return items_of(source, "documents")
    texts = items_of(source, "documents")
    if label not in names:
        raise _no_field(label, names)
    return ({"text": t, label: v} for t, v in zip(texts, items_of(source[label], "labels"), strict=True))


def _with_field(source: Any, label: str) -> Iterator[Document]:
    """The documents, once it is known that one of them has the field: what can be read again is looked through first."""
    found, once, waiting, fields, number = _documents(source, label), is_once(source), [], {}, 0
    for number, document in enumerate(found, 1):
        fields |= dict.fromkeys(document.fields)
        waiting += [document] if once else []
        if document.is_named:
            break
        if once and number == ENOUGH:
            raise _no_field(label, fields, f"the first {ENOUGH:,} documents")
    else:
        if number:
            raise _no_field(label, fields)
    yield from waiting
    yield from found if once else _documents(source, label)


def is_once(source: Any) -> bool:
    """Whether it can be read but once."""
    return str(source) == "-" if isinstance(source, str | Path) else hasattr(source, "__next__")


def field_or_file(source: Any, label: str) -> str:
    """The label where a document of the source has such a field, else the names of its files."""
    return label if any(d.is_named for d in _documents(source, label)) else FILE


def _no_field(label: str, fields: Iterable[str], who: str = "the documents") -> ValueError:
    names = [str(f) for f in fields if f != "text"]
    have = f"have {', '.join(map(repr, names[:8]))}" if names else "have no fields"
    return ValueError(
        f"labels: wanted a field that groups the documents, got {label!r}, and {who} {have}; name one of them, "
        f'"{FILE}" for the names of files, or give a list with a label for each{near(label, names)}'
    )


def _labelled(source: Any, labels: list[Any]) -> Iterator[Document]:
    number = len(labels) if is_once(source) else sum(1 for _ in _documents(source, None))
    for at, (document, label) in enumerate(zip_longest(_documents(source, None), labels)):
        if number != len(labels) or document is None or at >= len(labels):
            there = f"{number:,}" if number != len(labels) else f"{'only ' if document is None else 'more than '}{at:,}"
            raise ValueError(f"labels: wanted one for each document, got {len(labels):,} for {there}; give them in their order")
        yield Document(document.text, _group({"": label}, "", f"labels, place {at}", "")[0])


def files(source: str | Path) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted."""
    path = Path(source).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and _kind(p) in (*ROWS, *TEXTS, ".parquet")]
    else:
        found = [path] if path.is_file() else [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{source}: wanted a file, a folder or a glob of {', '.join((*ROWS, '.parquet', '.txt'))}, found none; "
            "put a text itself in a list"
        )
    return sorted(found)


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in OPENERS else path.suffix


def _given(item: Any, label: str | None) -> _Found:
    if isinstance(item, Document):
        return _Found(item.text, item.label)
    if isinstance(item, str):
        return _Found(item, is_named=False)
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        return _Found(item["text"], *_group(item, label, "documents", ""), tuple(item))
    raise TypeError(f'documents: wanted texts or mappings with "text", got {type(item).__name__}; make each a str')


def _of_file(path: Path, label: str | None) -> Iterator[_Found]:
    if _kind(path) == ".json":
        raise ValueError(f'{path}: wanted one document a line, {{"text": ...}}, in a .jsonl, got .json; write it so (jq -c ".[]")')
    if _kind(path) == ".parquet":
        yield from _of_parquet(path, label)
        return
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig") as stream:
            yield from _of_stream(stream, path, label)
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's word, not the file's
        raise ValueError(f"{path}: wanted whole UTF-8 text, got something else ({error}); convert or download it again") from error


def _of_stream(raw: IO[str], path: Path, label: str | None) -> Iterator[_Found]:
    stream = BoundedText(raw, path)
    if _kind(path) not in ROWS:
        yield _Found(stream.read(), "" if label is None else _name(path), label == FILE)
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
        yield _Found(row["text"], *_group(row, label, f"{path}, line {number}", _name(path)), tuple(row))


def _of_parquet(path: Path, label: str | None) -> Iterator[_Found]:
    file = parquet_file(path)
    names: Iterable[str] = file.schema_arrow.names
    if "text" not in names:
        raise ValueError(f'{path}: wanted a column "text", got {", ".join(map(told, names))}; rename one')
    columns = ["text", *([label] if label in names else [])]
    for number, row in enumerate(parquet_rows(file, path, columns, DOCUMENT_LIMIT), 1):
        if not isinstance(row["text"], str):
            raise ValueError(f'{path}, row {number}: wanted a text in "text", got {told(row["text"])}; leave the row out')
        yield _Found(row["text"], *_group(row, label, f"{path}, row {number}", _name(path)), tuple(names))


def _group(row: Mapping[str, Any], label: str | None, where: str, default: str) -> tuple[str, bool]:
    """The document's label, a text, a number or a truth value as text, and whether it is its own: `default` where it has none,
    null or NaN.
    """
    try:
        value = None if label is None else label_of(row.get(label))
    except LabelError as error:
        field = f" in {label!r}" if label else ""
        raise ValueError(f"{where}: wanted a name{field}, got {error}; give each document one text or number") from None
    if value is None:
        return "" if label is None else default, label == FILE and default != ""
    return value, True


def _name(path: Path) -> str:
    return path.name.split(".")[0].removeprefix("train-")
