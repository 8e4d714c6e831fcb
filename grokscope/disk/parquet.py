"""Parquet files of strangers: rows one after another, and nothing that unpacks without end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscope.disk.parquet_pages import pages
from grokscope.disk.reading import opened
from grokscope.harmless import told, visible

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Table
    from pyarrow.parquet import ParquetFile

FREE, MOST_PACKED = 1 << 28, 200
"""Bytes that a part of a file may unpack to whatever its size; of more, so many for each byte of the file."""
PAGE = 1 << 27
"""Bytes that one page may unpack to: a hundred times what writers put into one."""
ROWS = 1 << 16
"""Rows that are unpacked at a time, fewer where a single value may be large."""
NESTED = 1 << 25
"""Values of a column of lists, of which a single row may have any number, in one group of rows."""


def parquet_file(path: Path) -> ParquetFile:
    """A Parquet file, open. Texts that it holds once stay so in memory, however often they stand there."""
    import pyarrow
    import pyarrow.parquet as parquet

    with _named(path):
        opened(path).close()  # a pipe has no end
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if twice := [n for n in names if names.count(n) > 1]:
            raise ValueError(f"two columns {told(twice[0])}")
        kinds = {n: file.schema_arrow.field(n).type for n in names}
        texts = [n for n, kind in kinds.items() if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)]
        plain = _by_prefix(file)
        return parquet.ParquetFile(path, read_dictionary=[n for n in texts if n not in plain])


def _by_prefix(file: ParquetFile) -> set[str]:
    """The columns of which texts are stored as what they share with the one before: those Arrow does not keep once."""
    groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
    parts = (group.column(at) for group in groups for at in range(group.num_columns))
    return {part.path_in_schema for part in parts if "DELTA_BYTE_ARRAY" in part.encodings}


def parquet_rows(file: ParquetFile, path: Path, columns: Sequence[str], longest: int) -> Iterator[dict[str, Any]]:
    """Its rows, one after another, no text of which has more than `longest` characters.

    Raises ValueError, naming the file, for what cannot be read, or unpacks to too much.
    """
    with _named(path):
        for batch in _batches(file, path, columns, 256):
            for at in range(len(batch)):
                row = {name: batch.column(name)[at].as_py() for name in columns}
                if any(isinstance(value, str) and len(value) > longest for value in row.values()):
                    raise ValueError(f"a document of more than {longest:,} characters")
                yield row


def read_columns(paths: Sequence[Path], columns: Sequence[str] | None, most: int) -> Table:
    """Whole columns of one file or several (None: all), of at most `most` bytes in memory; texts as codes of a dictionary.

    Raises ValueError, naming the file, for what cannot be read, or unpacks to more.
    """
    import pyarrow

    found, left = [], most
    for path in paths:
        with _named(path):
            file, batches = parquet_file(path), []
            wanted = list(file.schema_arrow.names if columns is None else columns)
            for batch in _batches(file, path, wanted, ROWS):
                left -= batch.nbytes
                if left < 0:
                    raise ValueError(f"tables of more than {most:,} bytes")
                batches.append(batch)
            schema = batches[0].schema if batches else file.read_row_groups([], wanted).schema
            found.append(pyarrow.Table.from_batches(batches, schema))
    return pyarrow.concat_tables(found)


def with_texts(table: Table, most: int) -> Table:
    """A table with each text in its place, where `read_columns` gave codes. Raises ValueError for more than `most` bytes."""
    import pyarrow.compute as compute
    from pyarrow.types import is_dictionary

    for at, field in enumerate(table.schema):
        if is_dictionary(field.type):
            chunks = table.column(at).chunks
            sizes = [compute.sum(compute.binary_length(c.dictionary).take(c.indices)).as_py() or 0 for c in chunks]
            if sum(sizes) > most:
                raise ValueError(f"{told(field.name)} of {sum(sizes):,} bytes, where {most:,} have room")
            table = table.set_column(at, field.name, table.column(at).cast(field.type.value_type))
    return table


def _batches(file: ParquetFile, path: Path, columns: Sequence[str], most_rows: int) -> Iterator[RecordBatch]:
    """The rows of some columns, as many at a time as are small whatever they hold."""
    for number in range(file.metadata.num_row_groups):
        rows = _safe_rows(file, path, number, columns)
        options = {"row_groups": [number], "columns": list(columns), "use_threads": False}
        yield from file.iter_batches(max(1, min(most_rows, rows)), **options)


def _safe_rows(file: ParquetFile, path: Path, number: int, columns: Sequence[str]) -> int:
    """Rows of one group of rows that may be unpacked at a time: a text is no larger than its page, but may stand in each row.

    Raises ValueError where a page is too large, or all of them unpack to far more than they are in the file.
    """
    import pyarrow

    group, rows = file.metadata.row_group(number), ROWS
    kinds = {name: file.schema_arrow.field(name).type for name in columns}
    with opened(path) as raw:
        for at in range(group.num_columns):
            part, width = group.column(at), file.schema.column(at).length
            inside, packed = part.path_in_schema, part.total_compressed_size
            name = next((n for n in columns if inside == n or inside.startswith(f"{n}.")), None)
            if name is None:
                continue
            start = min(place for place in (part.dictionary_page_offset, part.data_page_offset) if place)
            found = list(pages(raw, start, packed))
            size, largest = sum(p.bytes for p in found), max([width, *(p.bytes for p in found)])
            if size > max(FREE, MOST_PACKED * packed) or largest > PAGE:
                said = f"{size:,} bytes out of {packed:,}, a page of {largest:,} among them"
                raise ValueError(f"{told(inside)} of {said}: nothing packs so well")
            if pyarrow.types.is_nested(kinds[name]) and (values := sum(p.values for p in found)) > NESTED:
                raise ValueError(f"{told(inside)} of {values:,} values in {group.num_rows:,} rows, where {NESTED:,} are the most")
            if part.physical_type.endswith("BYTE_ARRAY") and not pyarrow.types.is_dictionary(kinds[name]):
                if pyarrow.types.is_nested(kinds[name]):
                    raise ValueError(f"{told(inside)} of {kinds[name]}, where texts or numbers are wanted")
                rows = min(rows, PAGE // max(1, largest))
    return rows


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What goes wrong in a file, as one error with its name."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, KeyError, OverflowError, IndexError) as error:
        if isinstance(error, FileNotFoundError) or str(path) in str(error):
            raise
        said = visible(" ".join(str(error).split()))[:200] or type(error).__name__
        raise ValueError(f"{path}: wanted Parquet, got something else ({said}); convert or download it again") from error
